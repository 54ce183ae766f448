//! What was learned of names, and how often that has changed.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use pam_iam_core::name::LinuxName;

use super::Record;

type Names = HashMap<LinuxName, Rc<Record>>;

/// What was learned of names. Whoever works something out from all of it can tell by [`Self::version`] whether it still holds.
#[derive(Debug, Default)]
pub struct Records {
    names: Names,
    version: u64,
}

impl Records {
    /// Another number after each change.
    pub fn version(&self) -> u64 {
        self.version
    }
}

impl Deref for Records {
    type Target = Names;

    fn deref(&self) -> &Names {
        &self.names
    }
}

impl DerefMut for Records {
    fn deref_mut(&mut self) -> &mut Names {
        self.version += 1;
        &mut self.names
    }
}
