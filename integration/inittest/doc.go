// Package inittest tests what init systems get from integration/init: the scripts and
// units themselves, and that a real system tree can be lived in through a view. It has
// tests only; whole machines boot in package boottest.
package inittest
