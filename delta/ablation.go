package delta

import (
	"fmt"
	"slices"
)

// Steps that making can leave out, to measure what each brings (docs/delta.md). Bundles
// are right without any of them, only larger.
const (
	stepNumbers  = "numbers"  // sources whose path differs in numbers
	stepSimilar  = "similar"  // sources with similar content
	stepCopies   = "copies"   // same content under another name
	stepUnpack   = "unpack"   // compressed files are compared uncompressed
	stepMembers  = "members"  // members of archives that are files of the system
	stepModules  = "modules"  // tables of kernel modules are brought up to date
	stepHints    = "hints"    // types and checksums of a kernel's modules, together
	stepPrograms = "programs" // addresses of programs and libraries are brought up to date
	stepKernels  = "kernels"  // compressed kernels are brought up to date, and compressed again
	stepListing  = "listing"  // names and attributes are compared with the old ones
)

// Steps returns the names that MakeOptions.Without takes.
func Steps() []string {
	return []string{stepNumbers, stepSimilar, stepCopies, stepUnpack, stepMembers, stepModules, stepHints, stepPrograms, stepKernels, stepListing}
}

func (o *MakeOptions) checkSteps() error {
	for _, s := range o.Without {
		if !slices.Contains(Steps(), s) {
			return fmt.Errorf("there is no step %q, only %q", s, Steps())
		}
	}
	return nil
}

func (o *MakeOptions) without(step string) bool { return slices.Contains(o.Without, step) }
