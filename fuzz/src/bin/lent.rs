//! The fuzzer `lent`: see the library's documentation.
#![cfg_attr(fuzzing, no_main)]

nvme_vfio_fuzz::program!(nvme_vfio_fuzz::lent);
