//! The fuzzer `served`: see the library's documentation.
#![cfg_attr(fuzzing, no_main)]

nvme_vfio_fuzz::program!(nvme_vfio_fuzz::served);
