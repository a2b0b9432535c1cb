//! Numbers with names, open to numbers without.

/// Declares an open newtype over `u8`: constants for the values that have a
/// name, `name()` for all, and a `Display` that never loses the number.
macro_rules! named_u8 {
    (
        $(#[$meta:meta])*
        pub struct $type:ident;
        $( $(#[$const_meta:meta])* $constant:ident = $value:literal, $name:literal; )*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $type(pub u8);

        impl $type {
            $(
                #[doc = concat!($name, " (", stringify!($value), ").")]
                $(#[$const_meta])*
                pub const $constant: Self = Self($value);
            )*

            /// Every value that has a name, in ascending order.
            pub const NAMED: &'static [Self] = &[$(Self::$constant),*];

            /// The specification's name, `None` for a value without one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $( $value => Some($name), )*
                    _ => None,
                }
            }
        }

        impl core::fmt::Display for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{} ({:02X}h)", self.name().unwrap_or("Unknown"), self.0)
            }
        }

        impl core::fmt::Debug for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, f)
            }
        }
    };
}

pub(crate) use named_u8;
