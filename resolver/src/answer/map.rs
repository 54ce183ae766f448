//! The records of the map: what NSS may tell anybody, and for how long, without asking this resolver. The rules are those of
//! `names` and `groups`, which answer the same questions on the socket.

use std::time::Duration;

use pam_iam_core::id::Gid;
use pam_iam_core::map::{About, AccountRecord, BootTime, GroupRecord, Record, Until};
use pam_iam_core::name::{IAM_SUDO, IAM_USERS, LinuxName};
use pam_iam_core::wire::Policy;
use tokio::time::Instant;

use super::eligibility::verdict_by;
use super::groups::IAM_SUDO_NAME;
use super::{AnswerError, Answerer};
use crate::lookup::Named;
use crate::lookup::changes::Changed;
use crate::lookup::roster::Roster;
use crate::publish::Publisher;
use crate::source::Iam;

impl<I: Iam> Answerer<I> {
    /// Reads the host's own names again if they have changed.
    pub fn refresh(&self) {
        self.directory.notice_sleep();
        self.refresh_locals();
        let order_has_changed = self.map.as_ref().is_some_and(Publisher::refresh);
        if self.claims.refresh() || order_has_changed {
            self.directory.changes.mark_all();
        }
    }

    /// Reads the local accounts and groups again if they have changed.
    pub fn refresh_locals(&self) {
        if self.locals.refresh() {
            self.directory.changes.mark_all();
        }
    }

    /// Brings the map up to date, before an answer tells anybody what has changed. If NSS would show a name differently, the map
    /// is written at once. If only answers have become younger, a long map is written some seconds later, by [`Self::publish_ages`].
    pub fn publish(&self) {
        let Some(map) = &self.map else { return };
        let is_due = match self.directory.changes.take() {
            Changed::All => true,
            Changed::Names(names) => names.iter().any(|name| self.shows_differently(map, name)),
        };
        if is_due {
            self.write(map);
        }
    }

    /// Writes the map if it is too old to be left as it is.
    pub fn publish_ages(&self) {
        if let Some(map) = self.map.as_ref().filter(|map| map.is_due()) {
            self.write(map);
        }
    }

    /// Returns the time after which [`Self::publish_ages`] has something to write. None if it has nothing.
    pub fn map_pause(&self) -> Option<Duration> {
        self.map.as_ref()?.pause()
    }

    /// Returns whether NSS would show `name` differently from the map.
    fn shows_differently(&self, map: &Publisher, name: &LinuxName) -> bool {
        let Some(published) = map.published(name) else { return true };
        let record = self.account_record(name).ok().flatten();
        match (published, record) {
            (None, None) => false,
            (Some(old), Some(new)) => {
                let (before, after) = (old.until, new.until);
                let is_due = before != after && map.note_other_ages();
                is_due || serving(before) != serving(after) || old != AccountRecord { until: before, ..new }
            }
            _ => true,
        }
    }

    fn write(&self, map: &Publisher) {
        let began = Instant::now();
        let mut records = self.group_records();
        let mut is_complete = true;
        for name in self.directory.user_names() {
            match self.account_record(&name) {
                Ok(record) => records.extend(record.map(Record::Account)),
                Err(_) => is_complete = false,
            }
        }
        let max_age = self.max_age();
        let complete_until = match self.directory.serving_roster().filter(|_| is_complete) {
            Some(roster) if self.is_exhaustive(&roster) => Now::new().end_of(roster.began_at, max_age),
            _ => BootTime::default(),
        };
        let max_age = u32::try_from(max_age.as_millis()).unwrap_or(u32::MAX);
        map.write(&records, About { complete_until, max_age, ..About::default() }, began);
    }

    /// Returns whether every user who may log in is on the roster. A roster from before the start proves only that its users exist.
    fn is_exhaustive(&self, roster: &Roster) -> bool {
        !roster.restored && self.directory.known_access().is_ok_and(|access| *access == *roster.access)
    }

    /// Returns the groups that are no private ones. A gid outside the managed range is that of a local group, which NSS does not
    /// need us for.
    fn group_records(&self) -> Vec<Record> {
        let mut groups: Vec<(LinuxName, Gid, BootTime)> = Vec::new();
        if let Ok(gid) = self.gid_of_own(IAM_SUDO) {
            groups.push((IAM_SUDO_NAME.clone(), gid, BootTime::NEVER));
        }
        if let Some(roster) = self.directory.serving_roster() {
            let until = Now::new().end_of(roster.began_at, self.config().freshness.offline.0);
            let mapped = self.mapped(&roster).unwrap_or_default();
            groups.extend(mapped.into_iter().map(|(name, gid)| (name.clone(), gid, until)));
        }
        let is_ours = |name: &LinuxName| self.locals.gid_of(name.as_str()).is_ok_and(|gid| gid.is_none());
        let ours = groups.into_iter().filter(|(name, gid, _)| gid.is_managed() && is_ours(name));
        ours.map(|(name, gid, until)| Record::Group(GroupRecord { name, gid, until })).collect()
    }

    /// Returns the record of the account `name`. None if NSS shows no such account, or it takes a call to IAM to tell.
    fn account_record(&self, name: &LinuxName) -> Result<Option<AccountRecord>, AnswerError> {
        if self.is_local_or_shared(name)? {
            return Ok(None);
        }
        let Some(named) = self.directory.known_name(name) else { return Ok(None) };
        let (uid, iam_name, groups, answered_at, max_age) = match &named {
            Named::Cached(lookup) => {
                let Some(user) = self.entitled_user(name, lookup)? else { return Ok(None) };
                let Ok(access) = self.directory.known_access() else { return Ok(None) };
                if !verdict_by(&access, Policy::Login, user).allow {
                    return Ok(None);
                }
                let roster = self.directory.cached_roster();
                let groups = self.linux_groups_by(user, Some(&access), roster.as_deref())?;
                (user.uid, user.user.name.clone(), groups, lookup.entry.fetched_at, Some(self.max_age()))
            }
            Named::Listed(roster) => {
                let Some((uid, iam_name)) = self.listed_user(name, roster)? else { return Ok(None) };
                (uid, iam_name, self.listed_groups(name, roster)?, roster.began_at, None)
            }
        };
        // The reader adds iam-users by itself.
        let restricting = self.gid_of_own(IAM_USERS)?;
        let (mut ordinary, mut privileged) = (Vec::new(), Vec::new());
        for (group, gid) in groups.into_iter().filter(|(_, gid)| *gid != restricting) {
            let list = if self.is_privileged_group(group)? { &mut privileged } else { &mut ordinary };
            list.push(gid);
        }
        for list in [&mut ordinary, &mut privileged] {
            list.sort();
            list.dedup();
        }
        let until = self.until(name, answered_at, max_age);
        let user = self.user(name, uid, &iam_name);
        Ok(Some(AccountRecord { user, groups: ordinary, privileged, until }))
    }

    fn max_age(&self) -> Duration {
        self.config().freshness.max_age.0
    }

    /// Returns until when an answer about `name` may be used. `max_age` is how long the answer is fresh; None for one that never
    /// decides, since it comes from the roster.
    fn until(&self, name: &LinuxName, answered_at: Instant, max_age: Option<Duration>) -> Until {
        let now = Now::new();
        let freshness = &self.config().freshness;
        let (offline, offline_sudo) = (freshness.offline.0, freshness.offline_sudo.0);
        let listed = self.directory.serving_roster().filter(|roster| roster.has(name));
        let exists = match listed {
            Some(roster) => now.end_of(roster.began_at, offline),
            None => now.end_of(answered_at, freshness.roster.0.max(freshness.max_age.0).min(offline)),
        };
        // The roster is read every `freshness.roster`. While that goes well, no answer gets older than twice that.
        let (groups, privileged) = match self.directory.is_unreachable_about(name) {
            true => (offline, offline_sudo.min(offline)),
            false => ((freshness.roster.0 * 2).min(offline), (freshness.roster.0 * 2).min(offline)),
        };
        let tags = self.directory.tags_serve();
        let (login_rules, sudo_rules) = (now.boot.plus(tags.login), now.boot.plus(tags.sudo));
        Until {
            exists: exists.min(login_rules),
            fresh: max_age.map_or(BootTime::default(), |max_age| now.end_of(answered_at, max_age)),
            groups: now.end_of(answered_at, groups).min(login_rules),
            privileged: now.end_of(answered_at, privileged).min(sudo_rules),
        }
    }
}

/// Returns which parts of a record may be used now: the account, its groups, and its privileged groups.
fn serving(until: Until) -> [bool; 3] {
    let now = BootTime::now();
    [until.exists, until.groups, until.privileged].map(|moment| now < moment)
}

/// This moment by both clocks: that of the runtime, which answers have, and that of the map.
#[derive(Clone, Copy)]
struct Now {
    runtime: Instant,
    boot: BootTime,
}

impl Now {
    fn new() -> Self {
        Self { runtime: Instant::now(), boot: BootTime::now() }
    }

    /// Returns the moment at which an answer of `answered_at` becomes older than `limit`. The answer may be older than this boot.
    /// The runtime's clock stands still while the machine sleeps, and the directory makes everything older after that.
    fn end_of(self, answered_at: Instant, limit: Duration) -> BootTime {
        self.boot.plus(limit.saturating_sub(self.runtime.saturating_duration_since(answered_at)))
    }
}
