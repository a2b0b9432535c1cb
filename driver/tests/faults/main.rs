//! What the driver does when the controller misbehaves: on the emulated controller with injected faults, in this process and over
//! vfio-user.

/// Makes two tests of each function: one on a controller in this process, one on a served controller.
macro_rules! ways {
    [$($name:ident),* $(,)?] => {
        mod in_process {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::bench::Way::InProcess);
                }
            )*
        }

        mod over_vfio_user {
            $(
                #[test]
                fn $name() {
                    super::$name($crate::bench::Way::VfioUser);
                }
            )*
        }
    };
}

mod bench;
mod commands;
mod completions;
mod controllers;
mod identify;
mod malformed;
mod media;
mod scripts;
