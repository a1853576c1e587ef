// Package trusttest holds tests of who may do what, against the program as it is
// shipped: what another user can do to a pool and through a view, what set-id bits and
// capabilities are worth there, where secrets may turn up, and how much memory an update
// takes under a limit.
//
// Bundles that are signed and hostile are in delta (TestSignedHostileBundles), keys that
// travel in cmd/btrovl (testdata/keys.txt), the fence there too (TestFence).
package trusttest
