//! The user that a server becomes.

use nix::unistd::{Gid, Uid, User};

use super::PrivilegesError;

/// A user and a group, both without the rights of root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// The user of that name, or number, and his group.
    ///
    /// # Errors
    /// [`PrivilegesError::NoSuchUser`]; [`PrivilegesError::Root`] for one with the number 0 or in the group 0.
    pub fn named(name: &str) -> Result<Account, PrivilegesError> {
        let unknown = || PrivilegesError::NoSuchUser {
            name: name.to_owned(),
        };
        let number = name.parse().ok();
        let found = match number {
            Some(uid) => User::from_uid(Uid::from_raw(uid)),
            None => User::from_name(name),
        };
        let Some(user) = found.ok().flatten() else {
            // A number needs no entry in the list of users: the group has the same, then.
            let number = number.ok_or_else(unknown)?;
            return Account::new(number, number);
        };
        Account::new(user.uid.as_raw(), user.gid.as_raw())
    }

    /// A user and a group by their numbers.
    ///
    /// # Errors
    /// [`PrivilegesError::Root`] where one of them is 0.
    pub fn new(uid: u32, gid: u32) -> Result<Account, PrivilegesError> {
        if uid == 0 || gid == 0 {
            return Err(PrivilegesError::Root { uid });
        }
        Ok(Account { uid, gid })
    }

    /// Both numbers. Those that mean "as it is" to the system calls are no numbers.
    pub(super) fn ids(self) -> Result<(Uid, Gid), PrivilegesError> {
        if self.uid == u32::MAX || self.gid == u32::MAX {
            return Err(PrivilegesError::NoSuchUser {
                name: self.uid.to_string(),
            });
        }
        Ok((Uid::from_raw(self.uid), Gid::from_raw(self.gid)))
    }
}
