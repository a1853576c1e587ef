// Package subvolumes keeps a pool: bases, overlays, backups and the record of
// deployments.
package subvolumes
