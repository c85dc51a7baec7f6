"""The translator: copy-and-patch from stencils that LLVM makes out of the table of semantics."""
