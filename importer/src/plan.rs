//! Plans the changes, as a pure function of the roster, the configuration, the account files and the saved state. The next
//! run finishes an interrupted one by planning from the files that it finds.

use std::collections::{BTreeMap, BTreeSet};

use pam_iam_core::config::Config;
use pam_iam_core::id::Uid;
use pam_iam_core::paths::NOLOGIN;
use pam_iam_core::wire::{Roster, User};

use crate::elsewhere::{Directories, Elsewhere};
use crate::state::State;
use crate::table::{Row, Tables, characters, gid_of, uid_of};

mod groups;
mod retire;
#[cfg(test)]
mod tests;

/// The expiry date of a locked account in shadow(5): the 2nd of January 1970, as usermod(8) suggests.
const EXPIRED: &str = "1";

/// The password field of a managed account, which no password matches (passwd(5)).
const NO_PASSWORD: &str = "*";

/// The password field in passwd(5) if the password is in shadow(5).
const SHADOWED: &str = "x";

/// The indexes of the fields that are changed: three in passwd(5), and the expiry date in shadow(5).
const GECOS: usize = 4;
const HOME: usize = 5;
const SHELL: usize = 6;
const EXPIRY: usize = 7;

/// The input of a plan.
pub struct PlanInput<'a> {
    /// The users who may log in, according to IAM.
    pub roster: &'a Roster,
    /// The configuration.
    pub config: &'a Config,
    /// The saved state, in which this roster is already counted.
    pub state: &'a State,
    /// Local accounts that are adopted.
    pub adopted: &'a [(String, Uid)],
    /// Whether more accounts may be retired than `importer.max_retire`.
    pub force: bool,
    /// The current day, in days since 1970.
    pub today: u64,
    /// The answers of other services of nsswitch.conf about the users.
    pub others: &'a Directories,
}

/// The planned changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The account files afterwards.
    pub tables: Tables,
    /// The changes that lead to `tables`.
    pub changes: Vec<Change>,
    /// The changes that are not made, such as accounts that users do not get.
    pub refused: Vec<Refusal>,
    /// Accounts whose users are missing, but from too few rosters in a row to be retired, with the number of these rosters.
    pub waiting: Vec<(String, u32)>,
    /// Accounts of departed users, locked before or by this plan. Their sessions have to end.
    pub locked: Vec<Account>,
    /// The accounts of `locked` that are to be removed once their sessions have ended.
    pub remove: Vec<Removal>,
    /// How many accounts of `remove` may be removed in this run.
    pub limit: usize,
    /// The next value of [`State::locked`].
    pub former_expiry: BTreeMap<String, String>,
    /// The next value of [`State::joined`]: the adopted accounts that IAM puts into any group.
    pub joined: BTreeSet<String>,
}

/// A change of the account files.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A group is created.
    Group { name: String, gid: u32 },
    /// An account is created.
    Create { name: String, uid: Uid },
    /// An account is renamed, since its user has another IAM name.
    Rename { from: String, to: String },
    /// A field of an account is set as IAM or the configuration says.
    Update { name: String, field: &'static str, value: String },
    /// The account of a user who has come back is unlocked.
    Unlock { name: String },
    /// The account of a user who has left is locked.
    Lock { name: String },
    /// A user is added to a group.
    Join { name: String, group: String },
    /// A user is removed from a group.
    Leave { name: String, group: String },
}

/// A change that is not made, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The IAM user, account or group.
    pub who: String,
    /// The reason.
    pub why: String,
}

/// A locked account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: Uid,
}

/// An account that is to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The account.
    pub account: Account,
    /// Its home directory.
    pub home: String,
    /// What happens to the home directory.
    pub home_action: HomeAction,
}

/// What happens to the home directory of an account that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HomeAction {
    /// It stays, and belongs to a uid without a user.
    Stays,
    /// It is archived and then removed.
    Archive,
    /// It is removed without an archive.
    Delete,
}

/// Plans the changes.
pub fn plan(input: &PlanInput<'_>, tables: &Tables) -> Plan {
    let mut planner = Planner::new(input, tables);
    planner.rename();
    planner.retire();
    planner.create_and_update();
    planner.regroup();
    planner.plan.refused.sort();
    planner.plan.refused.dedup();
    planner.plan
}

/// Returns the managed accounts in passwd(5), by uid.
pub fn managed_accounts(tables: &Tables) -> BTreeMap<Uid, String> {
    let mut all = BTreeMap::new();
    for row in tables.passwd.rows() {
        if let (Some(name), Some(uid)) = (row.first(), uid_of(row).map(Uid))
            && uid.is_managed()
        {
            // The first of two names with one uid counts, as for getpwuid(3).
            all.entry(uid).or_insert_with(|| name.clone());
        }
    }
    all
}

struct Planner<'a> {
    input: &'a PlanInput<'a>,
    plan: Plan,
    /// The users of the roster by uid.
    users: BTreeMap<Uid, &'a User>,
}

impl<'a> Planner<'a> {
    fn new(input: &'a PlanInput<'a>, tables: &Tables) -> Self {
        let refused = input.roster.refused.iter();
        let refused =
            refused.map(|refused| Refusal { who: refused.iam_name.clone(), why: refused.why.clone() });
        let exists = |name: &str| tables.passwd.get(name).is_some();
        let plan = Plan {
            tables: tables.clone(),
            refused: refused.collect(),
            // An account that no longer exists needs no date to restore.
            former_expiry: input.state.locked.clone().into_iter().filter(|(name, _)| exists(name)).collect(),
            ..Plan::default()
        };
        let users = input.roster.users.iter().map(|user| (user.uid, user)).collect();
        Self { input, plan, users }
    }

    /// Renames the accounts whose IAM users have another name now, by their uids.
    fn rename(&mut self) {
        let mut wanted = Vec::new();
        for (uid, from) in managed_accounts(&self.plan.tables) {
            if let Some(user) = self.users.get(&uid).filter(|user| user.name.as_str() != from) {
                wanted.push((uid, from, user.name.to_string()));
            }
        }
        let others = self.input.others;
        let tables = &mut self.plan.tables;
        // An account that cannot be renamed keeps its name. Then the account that was to get this name cannot be renamed
        // either, and so on.
        loop {
            let leaving: BTreeSet<String> = wanted.iter().map(|(_, from, _)| from.clone()).collect();
            let before = wanted.len();
            wanted.retain(|(uid, _, to)| {
                let own_group = |row: &Row| gid_of(row) == Some(uid.0);
                let is_others = || others.of(to) != Elsewhere::Nobody;
                leaving.contains(to)
                    || tables.passwd.get(to).is_none()
                        && tables.group.get(to).is_none_or(own_group)
                        && !is_others()
            });
            if wanted.len() == before {
                break;
            }
        }
        // Renamed in two steps by way of unused names, since two users may have exchanged theirs.
        let unused = |name: &str| format!("{name}:");
        for (uid, from, _) in &wanted {
            tables.rename_account(from, &unused(from), uid.0);
        }
        for (uid, from, to) in wanted {
            tables.rename_account(&unused(&from), &to, uid.0);
            if let Some(former) = self.plan.former_expiry.remove(&from) {
                self.plan.former_expiry.insert(to.clone(), former);
            }
            self.plan.changes.push(Change::Rename { from, to });
        }
    }

    /// Creates and updates the accounts of the users on the roster.
    fn create_and_update(&mut self) {
        let uids: BTreeSet<Uid> = managed_accounts(&self.plan.tables).into_keys().collect();
        for user in &self.input.roster.users {
            match self.plan.tables.passwd.get(user.name.as_str()).map(uid_of) {
                None if uids.contains(&user.uid) => {
                    self.refuse(
                        user,
                        format!(
                            "its account keeps its former name, because another account has the name {}",
                            user.name
                        ),
                    );
                }
                None => self.create(user),
                Some(Some(uid)) if uid == user.uid.0 => self.update(user),
                Some(Some(uid)) if Uid(uid).is_managed() => self.refuse(
                    user,
                    format!(
                        "the account {} with uid {uid} belongs to an earlier IAM user of the name",
                        user.name
                    ),
                ),
                Some(_) => self.refuse(user, "its name is that of a local account".to_owned()),
            }
        }
        for name in &self.input.roster.adopted {
            self.unlock(name.as_str());
        }
    }

    fn create(&mut self, user: &User) {
        let name = user.name.as_str();
        // An account in passwd(5) would hide that of the other directory.
        let why = match self.input.others.of(name) {
            Elsewhere::Nobody => None,
            Elsewhere::Name => Some("its name is that of an account of another directory"),
            Elsewhere::Uid => Some("its uid is that of an account of another directory"),
            Elsewhere::Unknown => Some("another directory does not say whether it has the name"),
        };
        if let Some(why) = why {
            return self.refuse(user, why.to_owned());
        }
        match self.plan.tables.group.get(name).map(gid_of) {
            None => self.plan.tables.push_group(name, user.gid.0),
            Some(Some(gid)) if gid == user.gid.0 => {}
            Some(_) => return self.refuse(user, "its name is that of a group on this host".to_owned()),
        }
        if let Some(shadow) = &mut self.plan.tables.shadow {
            // A line of this name was left by an earlier account.
            shadow.remove(name);
        }
        let password = if self.ensure_shadow(name) { SHADOWED } else { NO_PASSWORD };
        let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
        let [gecos, home, shell] =
            [&user.gecos, &user.home, &user.shell].map(|text| characters(text.as_bytes()));
        let row = [name, password, &uid, &gid, &gecos, &home, &shell];
        self.plan.tables.passwd.push(row.map(str::to_owned).to_vec());
        self.plan.former_expiry.remove(name);
        self.plan.changes.push(Change::Create { name: name.to_owned(), uid: user.uid });
    }

    /// Gives an account a line in shadow(5) that no password matches, unless it has one. Returns false if there is no shadow(5).
    fn ensure_shadow(&mut self, name: &str) -> bool {
        let Some(shadow) = &mut self.plan.tables.shadow else { return false };
        if shadow.get(name).is_none() {
            let today = self.input.today.to_string();
            shadow.push([name, NO_PASSWORD, &today, "", "", "", "", "", ""].map(str::to_owned).to_vec());
        }
        true
    }

    /// Unlocks an account and updates its GECOS field and shell. Its home directory stays as it is, since nothing would move
    /// the files.
    fn update(&mut self, user: &User) {
        let name = user.name.as_str();
        // An interrupted renaming may have left the account without a line in shadow(5).
        self.ensure_shadow(name);
        let shell = characters(user.shell.as_bytes());
        if self.unlock(name) {
            self.set_field(name, SHELL, &shell);
        }
        for (at, field, value) in
            [(GECOS, "gecos", characters(user.gecos.as_bytes())), (SHELL, "shell", shell)]
        {
            let now = self.field(name, at);
            // If an administrator has set the shell of an account to nologin, it stays.
            if now != value && !(at == SHELL && now == NOLOGIN) {
                self.set_field(name, at, &value);
                self.plan.changes.push(Change::Update { name: name.to_owned(), field, value });
            }
        }
    }

    fn refuse(&mut self, user: &User, why: String) {
        self.plan.refused.push(Refusal { who: user.gecos.clone(), why });
    }

    /// Whether the account is expired and, if it is managed, has no login shell. An account without a line in shadow(5)
    /// counts as expired.
    fn is_locked(&self, name: &str, uid: Uid) -> bool {
        let expired = self.expiry(name).is_none_or(|expiry| expiry == EXPIRED);
        expired && (!uid.is_managed() || self.field(name, SHELL) == NOLOGIN)
    }

    fn lock(&mut self, account: &Account) {
        let name = &account.name;
        let now = self.expiry(name).unwrap_or_default();
        // If an interrupted run has saved the former date and set the new one, the saved date stays.
        if now != EXPIRED || !self.plan.former_expiry.contains_key(name) {
            self.plan.former_expiry.insert(name.clone(), now);
        }
        self.set_expiry(name, EXPIRED);
        if account.uid.is_managed() {
            self.set_field(name, SHELL, NOLOGIN);
        }
    }

    /// Undoes the importer's lock: restores the expiry date from the saved state. Returns false if there is no saved date.
    /// So an account that an administrator has locked stays locked.
    fn unlock(&mut self, name: &str) -> bool {
        let Some(former) = self.plan.former_expiry.remove(name) else { return false };
        if self.expiry(name).is_some_and(|expiry| expiry == EXPIRED) {
            self.set_expiry(name, &former);
        }
        self.plan.changes.push(Change::Unlock { name: name.to_owned() });
        true
    }

    fn field(&self, name: &str, at: usize) -> String {
        let row = self.plan.tables.passwd.get(name);
        row.and_then(|row| row.get(at)).cloned().unwrap_or_default()
    }

    fn set_field(&mut self, name: &str, at: usize, value: &str) {
        if let Some(field) = self.plan.tables.passwd.get_mut(name).and_then(|row| row.get_mut(at)) {
            value.clone_into(field);
        }
    }

    /// Returns the expiry date. None if the account has no line in shadow(5).
    fn expiry(&self, name: &str) -> Option<String> {
        self.plan.tables.shadow.as_ref()?.get(name)?.get(EXPIRY).cloned()
    }

    fn set_expiry(&mut self, name: &str, date: &str) {
        let row = self.plan.tables.shadow.as_mut().and_then(|shadow| shadow.get_mut(name));
        if let Some(field) = row.and_then(|row| row.get_mut(EXPIRY)) {
            date.clone_into(field);
        }
    }
}
