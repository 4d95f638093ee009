// Package shelf keeps things in C's memory. What Go itself allocates is none of an allocator's blocks, so memleak does not
// see it.
package shelf

// #include <stdlib.h>
import "C"
import "unsafe"

// Fill allocates a shelf, which is to be freed by Empty.
func Fill(size int) unsafe.Pointer {
	return C.malloc(C.size_t(size))
}

// Empty frees a shelf.
func Empty(shelf unsafe.Pointer) {
	C.free(shelf)
}
