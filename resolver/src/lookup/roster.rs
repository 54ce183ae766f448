//! The list of users who may log in, and the members of every group that the configuration names.
//!
//! The roster answers what no single lookup can: which user has a uid, which users are in a group, and whether an unknown
//! name is worth a call to IAM.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{join_all, try_join};
use pam_iam_core::config::{Access, Accounts, Allowed, Config};
use pam_iam_core::id::{Gid, Uid};
use pam_iam_core::name::{IamName, LinuxName};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::ids;
use crate::persist::file::milliseconds;
use crate::source::{Iam, IamError, IamGroup, IamId, IamUser};

/// The list of users who may log in.
#[derive(Clone, Debug)]
pub struct Roster {
    users: BTreeMap<LinuxName, IamUser>,
    names: HashMap<Uid, LinuxName>,
    groups: HashMap<IamName, Members>,
    /// Users whom the rules of access let log in, but who get no account, sorted.
    pub refused: Vec<Refused>,
    /// Groups that the configuration names and IAM does not have.
    pub missing: Vec<IamName>,
    /// The rules of access by which the roster was read.
    pub access: Rc<Access>,
    /// The moment before the first call of the read.
    pub began_at: Instant,
    /// The moment after the last call of the read.
    pub ended_at: Instant,
    /// Whether the roster was read before this program started, and restored from the disk.
    pub restored: bool,
}

/// The form of a roster on the disk.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedRoster {
    /// The time since the read began, in milliseconds.
    pub age: u64,
    /// How long the read took, in milliseconds.
    #[serde(default)]
    took: u64,
    users: Vec<IamUser>,
    groups: Vec<(IamName, Members)>,
    refused: Vec<Refused>,
    missing: Vec<IamName>,
    access: Access,
}

/// A user whom the rules of access let log in, but who gets no account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refused {
    /// The IAM user.
    pub user: IamUser,
    /// The reason, for an operator.
    pub why: String,
}

/// A group that the configuration names, and its members. None if IAM has no such group.
type Named<'a> = (&'a IamName, Option<(IamGroup, Vec<IamUser>)>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Members {
    gid: Gid,
    names: Vec<LinuxName>,
}

impl Roster {
    /// Reads the roster: GetGroup for every group that the configuration names, and ListUsers if all users are allowed.
    ///
    /// # Errors
    /// Returns an error if a call fails, since a part of the roster is of no use. A missing group is no error.
    pub async fn read<I: Iam>(iam: &I, config: &Config, access: Rc<Access>) -> Result<Self, IamError> {
        let began_at = Instant::now();
        let mut named: Vec<&IamName> = access.groups().chain(config.groups.keys()).collect();
        named.sort();
        named.dedup();
        let groups = join_all(named.into_iter().map(async |name| match iam.group(name).await {
            Err(IamError::NoSuchEntity) => Ok((name, None)),
            group => group.map(|group| (name, Some(group))),
        }));
        let groups = async { groups.await.into_iter().collect::<Result<Vec<_>, _>>() };
        let everybody = async {
            match access.allow {
                Allowed::All => iam.all_users().await,
                Allowed::None | Allowed::Groups(_) | Allowed::Tag(_) => Ok(Vec::new()),
            }
        };
        let (groups, everybody) = try_join(groups, everybody).await?;
        Ok(Self::assemble(config, Rc::clone(&access), groups, everybody, began_at))
    }

    fn assemble(
        config: &Config,
        access: Rc<Access>,
        groups: Vec<Named<'_>>,
        everybody: Vec<IamUser>,
        began_at: Instant,
    ) -> Self {
        let missing = groups.iter().filter(|(_, found)| found.is_none()).map(|(name, _)| (*name).clone());
        let missing = missing.collect();
        let found = || groups.iter().filter_map(|(name, found)| found.as_ref().map(|found| (*name, found)));
        let denied = found().filter(|(name, _)| access.deny.contains(name));
        let denied: HashSet<&IamId> =
            denied.flat_map(|(_, (_, members))| members).map(|user| &user.id).collect();
        let allowed = found().filter(|(name, _)| access.allow.groups().contains(name));
        let allowed = allowed.flat_map(|(_, (_, members))| members.clone()).chain(everybody);
        let allowed = allowed.filter(|user| !denied.contains(&user.id)).collect();
        let (users, names, refused) = accounts(allowed, &config.accounts);

        let linux = |user: &IamUser| {
            let name = user.name.to_linux(&config.accounts.drop_suffix).ok()?;
            users.get(&name).is_some_and(|known| known.id == user.id).then_some(name)
        };
        let groups = found().map(|(name, (group, members))| {
            let mut names: Vec<LinuxName> = members.iter().filter_map(linux).collect();
            names.sort();
            (name.clone(), Members { gid: ids::gid_of(group.id.as_str()), names })
        });
        let groups = groups.collect();
        let ended_at = Instant::now();
        Self { groups, users, names, refused, missing, access, began_at, ended_at, restored: false }
    }

    /// Returns the form of the roster for the disk, saved at `now`.
    pub fn saved(&self, now: Instant) -> SavedRoster {
        let mut groups: Vec<_> =
            self.groups.iter().map(|(name, members)| (name.clone(), members.clone())).collect();
        groups.sort_by(|(one, _), (other, _)| one.cmp(other));
        SavedRoster {
            age: milliseconds(now.saturating_duration_since(self.began_at)),
            took: milliseconds(self.ended_at.saturating_duration_since(self.began_at)),
            users: self.users.values().cloned().collect(),
            groups,
            refused: self.refused.clone(),
            missing: self.missing.clone(),
            access: Access::clone(&self.access),
        }
    }

    /// Returns a roster that was read at `began_at` and saved.
    pub fn restored(saved: SavedRoster, config: &Config, began_at: Instant) -> Self {
        let SavedRoster { age, took, users, groups, refused, missing, access } = saved;
        let ended_at = began_at + Duration::from_millis(took.min(age));
        let (users, names, _) = accounts(users, &config.accounts);
        let (groups, access) = (groups.into_iter().collect(), Rc::new(access));
        Self { users, names, groups, refused, missing, access, began_at, ended_at, restored: true }
    }

    /// Returns the time since the read began.
    pub fn age(&self) -> Duration {
        self.began_at.elapsed()
    }

    /// Returns the roster with an age that is greater by `span`. None if an [`Instant`] cannot say it.
    pub fn older_by(&self, span: Duration) -> Option<Self> {
        let (began_at, ended_at) = (self.began_at.checked_sub(span)?, self.ended_at.checked_sub(span)?);
        Some(Self { began_at, ended_at, ..self.clone() })
    }

    /// Returns the users of `everybody` who would get no account because of their name or uid, with the reason.
    pub fn refused_of(everybody: Vec<IamUser>, settings: &Accounts) -> Vec<Refused> {
        accounts(everybody, settings).2
    }

    /// Returns the users by their Linux names.
    pub fn users(&self) -> impl Iterator<Item = (&LinuxName, &IamUser)> {
        self.users.iter()
    }

    /// Returns the IAM user with the Linux name `name`.
    pub fn user(&self, name: &LinuxName) -> Option<&IamUser> {
        self.users.get(name)
    }

    /// Returns whether the roster lists `name`.
    pub fn has(&self, name: &LinuxName) -> bool {
        self.users.contains_key(name)
    }

    /// Returns the Linux name of the user with `uid`.
    pub fn name_of(&self, uid: Uid) -> Option<&LinuxName> {
        self.names.get(&uid)
    }

    /// Returns the IAM user with `uid`.
    pub fn holder_of(&self, uid: Uid) -> Option<&IamUser> {
        self.users.get(self.names.get(&uid)?)
    }

    /// Returns the members of `group` who may log in. Empty if the configuration does not name the group.
    pub fn members(&self, group: &IamName) -> &[LinuxName] {
        self.groups.get(group).map_or(&[], |group| &group.names)
    }

    /// Returns whether `name` is among the members of `group` who may log in.
    pub fn is_member(&self, group: &IamName, name: &LinuxName) -> bool {
        // The names are sorted, also those of a saved roster.
        self.members(group).binary_search(name).is_ok()
    }

    /// Returns the gid that follows from the GroupId of `group`. None if the configuration does not name the group, or
    /// IAM has none.
    pub fn gid_of(&self, group: &IamName) -> Option<Gid> {
        self.groups.get(group).map(|group| group.gid)
    }
}

type Listed = (BTreeMap<LinuxName, IamUser>, HashMap<Uid, LinuxName>, Vec<Refused>);

/// Gives every user a name and a uid. Refuses all users whose names map to one Linux name and, of two users with one uid,
/// the one who was created later.
fn accounts(mut everybody: Vec<IamUser>, settings: &Accounts) -> Listed {
    everybody.sort_by(|one, other| (one.created, &one.id).cmp(&(other.created, &other.id)));
    everybody.dedup();
    let mut refused = Vec::new();
    let mut refuse = |user: IamUser, why: String| refused.push(Refused { user, why });
    let mut claims: BTreeMap<LinuxName, Vec<IamUser>> = BTreeMap::new();
    for user in everybody {
        match user.name.to_linux(&settings.drop_suffix) {
            Ok(name) => claims.entry(name).or_default().push(user),
            Err(why) => refuse(user, format!("its Linux name {why}")),
        }
    }
    let mut sole = Vec::new();
    for (name, claimants) in claims {
        let names: Vec<&str> = claimants.iter().map(|user| user.name.as_str()).collect();
        match <[IamUser; 1]>::try_from(claimants.clone()) {
            Ok([user]) => sole.push((name, user)),
            Err(_) => {
                let why = format!("{} would all be called {name}", names.join(" and "));
                claimants.iter().for_each(|user| refuse(user.clone(), why.clone()));
            }
        }
    }
    sole.sort_by(|(_, one), (_, other)| (one.created, &one.id).cmp(&(other.created, &other.id)));
    let (mut users, mut names) = (BTreeMap::new(), HashMap::new());
    for (name, user) in sole {
        let uid = ids::uid(settings, &user);
        match names.get(&uid) {
            Some(elder) => refuse(user, format!("it has the uid {uid} of {elder}, who came first")),
            None => {
                names.insert(uid, name.clone());
                users.insert(name, user);
            }
        }
    }
    refused.sort();
    (users, names, refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Cause;
    use crate::source::fake::{FakeIam, config, id, linux};

    fn user(name: &str, id: &str, created: i64) -> IamUser {
        IamUser { name: IamName::user(name).unwrap(), id: IamId::new(id).unwrap(), created }
    }

    fn names(everybody: Vec<IamUser>) -> (Vec<String>, Vec<String>) {
        let (users, _, refused) = accounts(everybody, &Accounts::default());
        let refused = refused.into_iter().map(|Refused { user, why }| format!("{}: {why}", user.name));
        (users.into_keys().map(String::from).collect(), refused.collect())
    }

    #[test]
    fn a_name_that_two_claim_goes_to_neither() {
        let (names, refused) =
            names(vec![user("a@b", &id(1), 1), user("a.at.b", &id(2), 2), user("c", &id(3), 3)]);
        assert_eq!(names, ["c"]);
        let why = "a@b and a.at.b would all be called a.at.b";
        assert_eq!(refused, [format!("a.at.b: {why}"), format!("a@b: {why}")]);
    }

    #[test]
    fn a_uid_that_two_have_goes_to_the_elder() {
        let (one, other) = crate::source::fake::ids_that_meet();
        let (names, refused) = names(vec![user("late", &one, 20), user("early", &other, 10)]);
        assert_eq!(names, ["early"]);
        assert!(refused[0].starts_with("late: it has the uid "), "{refused:?}");
    }

    #[test]
    fn a_name_that_linux_cannot_have_is_left_out_with_a_reason() {
        let (names, refused) = names(vec![user("12345", &id(1), 1), user("-x", &id(2), 2)]);
        assert!(names.is_empty());
        assert_eq!(
            refused,
            ["-x: its Linux name begins with '-' or '.'", "12345: its Linux name is all digits"]
        );
    }

    #[tokio::test(flavor = "local")]
    async fn the_list_holds_the_members_of_the_allowed_groups_and_knows_the_others() {
        let iam = FakeIam::default();
        iam.add("alice", &["users"]);
        iam.add("carol", &["users", "admins"]);
        iam.add("eve", &["admins"]);
        let config = config("[access]\nallow = ['users']\nsudo = ['admins', 'nobody-made-this']");
        let roster = Roster::read(&iam, &config, Rc::new(config.access.clone())).await.unwrap();
        assert_eq!(roster.users().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["alice", "carol"]);
        assert_eq!(roster.members(&IamName::group("admins").unwrap()), [linux("carol")]);
        assert_eq!(roster.missing, [IamName::group("nobody-made-this").unwrap()]);
        let carol = roster.users().last().unwrap().1;
        assert_eq!(roster.name_of(ids::uid_of(carol.id.as_str())), Some(&linux("carol")));
    }

    #[tokio::test(flavor = "local")]
    async fn half_a_list_is_none() {
        let iam = FakeIam::default();
        iam.add("alice", &["users"]);
        iam.fail(Some(Cause::Call("throttled".into()).into()));
        let config = config("[access]\nallow = ['users']");
        assert!(Roster::read(&iam, &config, Rc::new(config.access.clone())).await.is_err());
    }
}
