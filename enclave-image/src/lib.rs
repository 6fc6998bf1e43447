//! Will build the enclave image file (EIF). Nothing of it exists yet: the package holds its place in the
//! workspace, and has no program that could pretend to work.
