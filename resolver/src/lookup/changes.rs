//! Which names NSS may show differently since the map was last brought up to date.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use pam_iam_core::name::LinuxName;
use tokio::sync::Notify;

/// The most names that are listed one by one. With more, all count as changed.
const NAMES_MAX: usize = 1000;

/// The names whose answers may have changed.
#[derive(Debug, Default)]
pub struct Changes {
    names: RefCell<BTreeSet<LinuxName>>,
    all: Cell<bool>,
    marked: Notify,
}

/// A set of changed names.
#[derive(Debug, PartialEq, Eq)]
pub enum Changed {
    /// These.
    Names(BTreeSet<LinuxName>),
    /// Any name may have changed.
    All,
}

impl Changes {
    /// Notes that the answer about `name` may have changed.
    pub fn mark(&self, name: &LinuxName) {
        if self.names.borrow().len() >= NAMES_MAX {
            return self.mark_all();
        }
        self.names.borrow_mut().insert(name.clone());
        self.marked.notify_one();
    }

    /// Notes that the answer about any name may have changed.
    pub fn mark_all(&self) {
        self.all.set(true);
        self.names.borrow_mut().clear();
        self.marked.notify_one();
    }

    /// Waits until something is marked.
    pub async fn marked(&self) {
        self.marked.notified().await;
    }

    /// Returns what was marked since the last call.
    pub fn take(&self) -> Changed {
        let names = self.names.take();
        if self.all.replace(false) { Changed::All } else { Changed::Names(names) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::fake::linux;

    #[test]
    fn a_change_is_taken_once_and_too_many_are_all() {
        let changes = Changes::default();
        changes.mark(&linux("alice"));
        assert_eq!(changes.take(), Changed::Names([linux("alice")].into()));
        assert_eq!(changes.take(), Changed::Names(BTreeSet::new()));
        (0..=NAMES_MAX).for_each(|number| changes.mark(&linux(&format!("user{number}"))));
        assert_eq!(changes.take(), Changed::All);
    }
}
