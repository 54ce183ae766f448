//! What is to change, as a pure function of the roster, the configuration, the account files and what the last runs
//! left. Planned again after whatever happened, it leads to the same end: that is how an interrupted run is finished.

use std::collections::{BTreeMap, BTreeSet};

use pam_iam_core::config::{Config, Importer, Retire};
use pam_iam_core::id::Uid;
use pam_iam_core::name::{IAM_USERS, LinuxName};
use pam_iam_core::paths::NOLOGIN;
use pam_iam_core::wire::{Roster, User};

use crate::state::State;
use crate::table::{Row, Table, Tables, characters, gid_of, members_of, uid_of};

#[cfg(test)]
mod tests;

/// The expiry date of a locked account in shadow(5): the 2nd of January 1970, as usermod(8) suggests.
const EXPIRED: &str = "1";

/// The password of an account of ours, which none matches (passwd(5)).
const NO_PASSWORD: &str = "*";

/// Where passwd(5) says that the password is in shadow(5).
const SHADOWED: &str = "x";

/// However few accounts there are, so many may be retired in one run.
const MAX_RETIRE_AT_LEAST: usize = 3;

/// The places of the fields that are changed, in passwd(5) and shadow(5).
const GECOS: usize = 4;
const HOME: usize = 5;
const SHELL: usize = 6;
const EXPIRY: usize = 7;

/// What a plan is made from.
pub struct Situation<'a> {
    /// Who may log in, by IAM.
    pub roster: &'a Roster,
    /// The configuration.
    pub config: &'a Config,
    /// Who was missing, with this roster counted.
    pub state: &'a State,
    /// Local accounts that are adopted.
    pub adopted: &'a [(String, Uid)],
    /// Whether more may be retired than `importer.max_retire`.
    pub force: bool,
    /// Days since 1970.
    pub today: u64,
}

/// What is to change.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The account files as they are to be.
    pub tables: Tables,
    /// What that changes.
    pub changes: Vec<Change>,
    /// Who gets no account, and what is not done for another reason.
    pub refused: Vec<Refusal>,
    /// Accounts whose users are missing, and in how many rosters in a row, but not yet often enough.
    pub waiting: Vec<(String, u32)>,
    /// Accounts that are locked, or are with this plan, whose sessions have to end.
    pub locked: Vec<Account>,
    /// Those of them that are to be removed when that is done.
    pub remove: Vec<Removal>,
    /// What [`State::locked`] is to be.
    pub locked_adopted: BTreeMap<String, String>,
}

/// A change of the account files.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A group is made.
    Group { name: String, gid: u32 },
    /// An account is made.
    Create { name: String, uid: Uid },
    /// An account of a user whose IAM name was changed.
    Rename { from: String, to: String },
    /// A field of an account follows IAM or the configuration.
    Update { name: String, field: &'static str, value: String },
    /// A user has come back.
    Unlock { name: String },
    /// A user has left.
    Lock { name: String },
    /// A user is in a group.
    Join { name: String, group: String },
    /// A user is no longer in a group.
    Leave { name: String, group: String },
}

/// Something that is not done, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// An IAM user or an account.
    pub who: String,
    /// Why.
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
    /// Which.
    pub account: Account,
    /// Its home directory.
    pub home: String,
    /// What becomes of that.
    pub fate: HomeFate,
}

/// What becomes of the home directory of an account that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HomeFate {
    /// It stays, and belongs to a uid that nobody has any more.
    Stays,
    /// It is packed away first.
    Archive,
    /// It is removed.
    Delete,
}

/// Makes the plan.
pub fn plan(situation: &Situation<'_>, tables: &Tables) -> Plan {
    let mut planner = Planner::new(situation, tables);
    planner.rename();
    planner.retire();
    planner.create_and_update();
    planner.regroup();
    planner.plan.refused.sort();
    planner.plan.refused.dedup();
    planner.plan
}

/// The accounts of ours by uid, as the files have them.
pub fn accounts_of_ours(tables: &Tables) -> BTreeMap<Uid, String> {
    let ours = |row: &Row| Some((Uid(uid_of(row)?), row.first()?.clone()));
    // Of two names with one uid the first counts, as getpwuid(3) has it.
    tables.passwd.rows().filter_map(ours).filter(|(uid, _)| uid.is_ours()).fold(
        BTreeMap::new(),
        |mut all, (uid, name)| {
            all.entry(uid).or_insert(name);
            all
        },
    )
}

struct Planner<'a> {
    situation: &'a Situation<'a>,
    plan: Plan,
    /// The users of the roster by uid.
    users: BTreeMap<Uid, &'a User>,
}

impl<'a> Planner<'a> {
    fn new(situation: &'a Situation<'a>, tables: &Tables) -> Self {
        let refused = situation.roster.refused.iter();
        let refused =
            refused.map(|refused| Refusal { who: refused.iam_name.clone(), why: refused.why.clone() });
        let plan = Plan {
            tables: tables.clone(),
            refused: refused.collect(),
            locked_adopted: situation.state.locked.clone(),
            ..Plan::default()
        };
        let users = situation.roster.users.iter().map(|user| (user.uid, user)).collect();
        Self { situation, plan, users }
    }

    /// Accounts whose IAM users have another name now. The uid says that they are the same.
    fn rename(&mut self) {
        let mut wanted = Vec::new();
        for (uid, from) in accounts_of_ours(&self.plan.tables) {
            if let Some(user) = self.users.get(&uid).filter(|user| user.name.as_str() != from) {
                wanted.push((uid, from, user.name.to_string()));
            }
        }
        let leaving: BTreeSet<String> = wanted.iter().map(|(_, from, _)| from.clone()).collect();
        let tables = &mut self.plan.tables;
        wanted.retain(|(_, _, to)| {
            let free = |table: &Table| table.get(to).is_none() || leaving.contains(to);
            free(&tables.passwd) && free(&tables.group)
        });
        // By way of names that nobody has, since two users may have exchanged theirs.
        for (uid, from, _) in &wanted {
            tables.rename_account(from, &format!("{from}:"), uid.0);
        }
        for (uid, from, to) in wanted {
            tables.rename_account(&format!("{from}:"), &to, uid.0);
            self.plan.changes.push(Change::Rename { from, to });
        }
    }

    /// Accounts whose users have left: locked now, and removed where the configuration wants it. Where a new user has
    /// taken the name, the account of the old one makes way.
    fn retire(&mut self) {
        let Situation { roster, config, state, adopted, force, .. } = *self.situation;
        let ours = accounts_of_ours(&self.plan.tables);
        let is_due = |uid: Uid| roster.complete && state.missing(uid) >= config.importer.confirm.max(1);
        let keeps = config.importer.retire == Retire::Lock;
        let (mut due, mut managed) = (Vec::new(), 0);
        for (uid, name) in &ours {
            let final_state = keeps && self.is_locked(name);
            managed += usize::from(!final_state);
            self.wait_or(is_due(*uid), name, *uid, final_state, &mut due);
        }
        for (name, uid) in adopted.iter().filter(|(name, _)| !ours.values().any(|known| known == name)) {
            let locked = state.locked.contains_key(name);
            managed += usize::from(!locked);
            self.wait_or(is_due(*uid), name, *uid, locked, &mut due);
        }
        let fresh = due.iter().filter(|(_, done)| !done).count();
        let max = limit(&config.importer, managed);
        if fresh > max && !force {
            let why = format!(
                "{fresh} of {managed} accounts would be retired, and importer.max_retire lets {max}; if so many have \
                 really left, run: iam-importer --force"
            );
            self.plan.refused.push(Refusal { who: "retiring".to_owned(), why });
            due.retain(|(_, done)| *done);
        }
        for (account, done) in due {
            self.retire_one(account, done);
        }
    }

    fn wait_or(&mut self, is_due: bool, name: &str, uid: Uid, done: bool, due: &mut Vec<(Account, bool)>) {
        let missing = self.situation.state.missing(uid);
        if is_due {
            due.push((Account { name: name.to_owned(), uid }, done));
        } else if missing > 0 && !done {
            self.plan.waiting.push((name.to_owned(), missing));
        }
    }

    fn retire_one(&mut self, account: Account, done: bool) {
        if account.uid.is_ours() {
            self.lock(&account.name);
            let taken = self.users.values().any(|user| user.name.as_str() == account.name);
            let fate = match self.situation.config.importer.retire {
                Retire::Archive => Some(HomeFate::Archive),
                Retire::Delete => Some(HomeFate::Delete),
                Retire::Lock => taken.then_some(HomeFate::Stays),
            };
            if let Some(fate) = fate {
                let home = self.field(&account.name, HOME);
                self.plan.remove.push(Removal { account: account.clone(), home, fate });
            }
        } else if !done {
            let before = self.expiry(&account.name).unwrap_or_default();
            self.plan.locked_adopted.insert(account.name.clone(), before);
            self.set_expiry(&account.name, EXPIRED);
        }
        if !done {
            self.plan.changes.push(Change::Lock { name: account.name.clone() });
        }
        self.plan.locked.push(account);
    }

    /// The users of the roster have accounts that look as they should.
    fn create_and_update(&mut self) {
        for user in &self.situation.roster.users {
            match self.plan.tables.passwd.get(user.name.as_str()).map(uid_of) {
                None => self.create(user),
                Some(Some(uid)) if uid == user.uid.0 => self.update(user),
                Some(Some(uid)) if Uid(uid).is_ours() => self.refuse(
                    user,
                    format!(
                        "the account {} with uid {uid} belongs to an earlier IAM user of the name",
                        user.name
                    ),
                ),
                Some(_) => self.refuse(user, "its name is that of a local account".to_owned()),
            }
        }
        for name in &self.situation.roster.adopted {
            if let Some(before) = self.plan.locked_adopted.remove(name.as_str()) {
                // One that an administrator has unlocked, or locked otherwise, stays as it is.
                if self.expiry(name.as_str()).is_some_and(|expiry| expiry == EXPIRED) {
                    self.set_expiry(name.as_str(), &before);
                    self.plan.changes.push(Change::Unlock { name: name.to_string() });
                }
            }
        }
    }

    fn create(&mut self, user: &User) {
        let name = user.name.as_str();
        let tables = &mut self.plan.tables;
        match tables.group.get(name).map(gid_of) {
            None => {
                tables.group.push(row([name, SHADOWED, &user.gid.to_string(), ""]));
                if let Some(gshadow) = &mut tables.gshadow {
                    // One of no group is left over from a change that was cut off.
                    gshadow.remove(name);
                    gshadow.push(row([name, "!", "", ""]));
                }
            }
            Some(Some(gid)) if gid == user.gid.0 => {}
            Some(_) => return self.refuse(user, "its name is that of a group on this host".to_owned()),
        }
        let tables = &mut self.plan.tables;
        let password = match &mut tables.shadow {
            Some(shadow) => {
                shadow.remove(name);
                let today = self.situation.today.to_string();
                shadow.push(row([name, NO_PASSWORD, &today, "", "", "", "", "", ""]));
                SHADOWED
            }
            None => NO_PASSWORD,
        };
        let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
        let [gecos, home, shell] = wanted(user);
        tables.passwd.push(row([name, password, &uid, &gid, &gecos, &home, &shell]));
        self.plan.changes.push(Change::Create { name: name.to_owned(), uid: user.uid });
    }

    fn update(&mut self, user: &User) {
        let name = user.name.as_str();
        if self.is_locked(name) {
            self.set_expiry(name, "");
            self.set_field(name, SHELL, &wanted(user)[2]);
            self.plan.changes.push(Change::Unlock { name: name.to_owned() });
        }
        for ((at, field), value) in
            [(GECOS, "gecos"), (HOME, "home"), (SHELL, "shell")].into_iter().zip(wanted(user))
        {
            if self.field(name, at) != value {
                self.set_field(name, at, &value);
                self.plan.changes.push(Change::Update { name: name.to_owned(), field, value });
            }
        }
    }

    /// Users are in the groups that IAM puts them in, and in no other of these.
    fn regroup(&mut self) {
        let ours = accounts_of_ours(&self.plan.tables);
        let managed: BTreeMap<&str, Uid> = ours
            .iter()
            .map(|(uid, name)| (name.as_str(), *uid))
            .chain(self.situation.adopted.iter().map(|(name, uid)| (name.as_str(), *uid)))
            .collect();
        let roster: BTreeMap<&str, &[LinuxName]> =
            self.situation.roster.groups.iter().map(|group| (group.name.as_str(), &*group.members)).collect();
        for group in &self.situation.roster.groups {
            self.ensure_group(group.name.as_str(), group.gid.0);
        }
        let locked_adopted: Vec<String> = self.plan.locked_adopted.keys().cloned().collect();
        let once_set = self.situation.state.groups.iter().map(String::as_str);
        let groups: BTreeSet<&str> = roster.keys().copied().chain(once_set).collect();
        for group in groups {
            let members = roster.get(group).copied().unwrap_or_default();
            let mut wanted: BTreeSet<&str> = members.iter().map(LinuxName::as_str).collect();
            wanted.retain(|name| managed.contains_key(name));
            if group == IAM_USERS {
                // Also who is locked: sshd's rule that takes keys from IAM alone goes by this group.
                wanted.extend(ours.values().map(String::as_str));
                wanted.extend(locked_adopted.iter().map(String::as_str));
            }
            self.set_members(group, &wanted, &managed);
        }
    }

    fn ensure_group(&mut self, name: &str, gid: u32) {
        let tables = &mut self.plan.tables;
        if tables.group.get(name).is_some() {
            return;
        }
        if let Some(holder) =
            tables.group.rows().find(|row| gid_of(row) == Some(gid)).and_then(|row| row.first())
        {
            let why = format!("its gid {gid} is that of the group {holder}");
            self.plan.refused.push(Refusal { who: format!("group {name}"), why });
            return;
        }
        tables.group.push(row([name, SHADOWED, &gid.to_string(), ""]));
        if let Some(gshadow) = &mut tables.gshadow {
            gshadow.remove(name);
            gshadow.push(row([name, "!", "", ""]));
        }
        self.plan.changes.push(Change::Group { name: name.to_owned(), gid });
    }

    fn set_members(&mut self, group: &str, wanted: &BTreeSet<&str>, managed: &BTreeMap<&str, Uid>) {
        let Some(row) = self.plan.tables.group.get(group) else { return };
        let present: BTreeSet<String> = members_of(row).map(str::to_owned).collect();
        let leaves = |name: &str| {
            let Some(uid) = managed.get(name) else { return false };
            // Who is missing and may only not have been listed stays as is until that is certain.
            let uncertain = !self.situation.roster.complete
                || self.situation.state.missing(*uid) > 0 && !self.plan.locked.iter().any(|a| a.uid == *uid);
            !wanted.contains(name) && !uncertain
        };
        let leaving: BTreeSet<&String> = present.iter().filter(|name| leaves(name)).collect();
        let joining: Vec<&str> = wanted.iter().copied().filter(|name| !present.contains(*name)).collect();
        if leaving.is_empty() && joining.is_empty() {
            return;
        }
        self.plan.tables.change_group(group, |members| {
            members.retain(|member| !leaving.contains(member));
            let known: BTreeSet<String> = members.iter().cloned().collect();
            members
                .extend(joining.iter().filter(|name| !known.contains(**name)).map(|&name| name.to_owned()));
        });
        let group = || group.to_owned();
        for name in leaving {
            self.plan.changes.push(Change::Leave { name: name.clone(), group: group() });
        }
        for name in joining {
            self.plan.changes.push(Change::Join { name: name.to_owned(), group: group() });
        }
    }

    fn refuse(&mut self, user: &User, why: String) {
        self.plan.refused.push(Refusal { who: user.gecos.clone(), why });
    }

    /// Whether we have locked the account: expired and without a shell. One that an administrator has locked otherwise is
    /// not ours to unlock.
    fn is_locked(&self, name: &str) -> bool {
        let expired = self.expiry(name).is_none_or(|expiry| expiry == EXPIRED);
        expired && self.field(name, SHELL) == NOLOGIN
    }

    fn lock(&mut self, name: &str) {
        self.set_expiry(name, EXPIRED);
        self.set_field(name, SHELL, NOLOGIN);
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

    /// The expiry date; none where there is no shadow(5) that has one.
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

/// How many accounts of so many one run may retire.
fn limit(importer: &Importer, managed: usize) -> usize {
    (managed * usize::from(importer.max_retire.0) / 100).max(MAX_RETIRE_AT_LEAST)
}

/// Gecos, home directory and shell as passwd(5) is to have them.
fn wanted(user: &User) -> [String; 3] {
    [&user.gecos, &user.home, &user.shell].map(|text| characters(text.as_bytes()))
}

fn row<const N: usize>(fields: [&str; N]) -> Row {
    fields.map(str::to_owned).to_vec()
}
