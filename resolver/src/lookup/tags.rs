//! The rules of access, if the configuration leaves them to tags of the EC2 instance.

use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::config::{Access, Allowed, TagRule};
use pam_iam_core::escape::Value;
use pam_iam_core::name::IamName;
use pam_iam_core::wire::Policy;
use tokio::time::Instant;

use super::Directory;
use super::cache::TagValue;
use super::single_flight::Fetch;
use crate::persist::dirty::Dirty;
use crate::source::{Cause, Iam, IamError};

/// How long after the start of a failed read of the tags no other is started.
const TAGS_BACK_OFF: Duration = Duration::from_secs(20);

/// The read of the tags that is under way, and the outcome of the last one.
#[derive(Default)]
pub(super) struct TagFetches {
    running: Option<Fetch<()>>,
    /// The moment when the last read began, whether it failed or not.
    last_began: Option<Instant>,
    /// The error of the last read of the tag of `access.allow`. None if it succeeded.
    allow_failure: Option<IamError>,
}

/// How much longer the rules of access serve if no tag is read. `Duration::MAX` for rules that stand in the configuration.
pub struct RulesServe {
    /// The rules of login.
    pub login: Duration,
    /// The rules of sudo.
    pub sudo: Duration,
}

impl TagFetches {
    /// Makes the last read older by `span`.
    pub(super) fn age_by(&mut self, span: Duration) {
        self.last_began = self.last_began.and_then(|began| began.checked_sub(span));
    }
}

impl<I: Iam> Directory<I> {
    /// Returns the rules of access, with the groups that the tags name. Every read of the roster reads the tags too, so
    /// they are read here only if the last read began twice `freshness.roster` ago or earlier.
    ///
    /// # Errors
    /// Returns an error if the tag of `access.allow` names no group, or cannot be read and has no value that still
    /// serves. If the same happens to the tag of `access.sudo`, nobody may use sudo.
    pub async fn access(self: &Rc<Self>) -> Result<Rc<Access>, IamError> {
        self.access_within(self.config.freshness.roster.0 * 2).await
    }

    /// Returns the rules of access. Reads the tags first if the last read began `max_age` ago or earlier.
    ///
    /// # Errors
    /// Returns an error if [`Self::access`] would.
    pub(super) async fn access_within(self: &Rc<Self>, max_age: Duration) -> Result<Rc<Access>, IamError> {
        if !self.has_tags() {
            return Ok(Rc::clone(&self.fixed_access));
        }
        let last_began = self.fetches.borrow().tags.last_began;
        if last_began.is_none_or(|began| began.elapsed() >= max_age) {
            self.read_tags().await;
            self.dirty.wait_until_persisted().await;
        }
        self.access_by_tags()
    }

    /// Returns the rules of access as they are known now, without a call.
    ///
    /// # Errors
    /// Returns an error if [`Self::access`] would.
    pub fn known_access(&self) -> Result<Rc<Access>, IamError> {
        if self.has_tags() { self.access_by_tags() } else { Ok(Rc::clone(&self.fixed_access)) }
    }

    /// Returns how much longer the rules of access serve as they are known now.
    pub fn tags_serve(&self) -> RulesServe {
        let left = |allowed: &Allowed, value: &TagValue, limit: Duration| match (allowed, value) {
            (Allowed::Tag(_), Some((_, read_at))) => limit.saturating_sub(read_at.elapsed()),
            (Allowed::Tag(_), None) => Duration::ZERO,
            _ => Duration::MAX,
        };
        let (cache, freshness) = (self.cache.borrow(), &self.config.freshness);
        let Access { allow, sudo, .. } = &self.config.access;
        RulesServe {
            login: left(allow, &cache.allow_tag, freshness.offline.0),
            sudo: left(sudo, &cache.sudo_tag, freshness.offline_sudo.0),
        }
    }

    fn has_tags(&self) -> bool {
        let Access { allow, sudo, .. } = &self.config.access;
        [allow, sudo].into_iter().any(|allowed| matches!(allowed, Allowed::Tag(_)))
    }

    /// Returns the rules of access by the last values of the tags. While the metadata service does not answer, the values
    /// serve as long as entries do while IAM does not answer.
    fn access_by_tags(&self) -> Result<Rc<Access>, IamError> {
        let (cache, fetches) = (self.cache.borrow(), self.fetches.borrow());
        let freshness = &self.config.freshness;
        let still_serves = |value: &TagValue, limit: Duration| {
            value.clone().filter(|(_, read_at)| read_at.elapsed() < limit).map(|(allowed, _)| allowed)
        };
        let failure = || fetches.tags.allow_failure.clone().unwrap_or(Cause::TagsUnread.into());
        let allow = still_serves(&cache.allow_tag, freshness.offline.0).ok_or_else(failure)?;
        let sudo = still_serves(&cache.sudo_tag, freshness.offline_sudo.0).unwrap_or(Allowed::None);
        Ok(Rc::new(Access { allow, sudo, deny: self.config.access.deny.clone() }))
    }

    /// Reads the tags, or awaits the read that is under way. Does nothing within [`TAGS_BACK_OFF`] of a failed read.
    async fn read_tags(self: &Rc<Self>) {
        let (under_way, has_just_failed) = {
            let tags = &self.fetches.borrow().tags;
            let is_recent = tags.last_began.is_some_and(|began| began.elapsed() < TAGS_BACK_OFF);
            (tags.running.as_ref().and_then(Fetch::under_way), is_recent && tags.allow_failure.is_some())
        };
        let outcome = match under_way {
            Some(outcome) => outcome,
            None if has_just_failed => return,
            None => {
                let this = Rc::clone(self);
                let fetch = Fetch::start(async move {
                    this.read_both_tags().await;
                    this.fetches.borrow_mut().tags.running = None;
                    Ok(Rc::new(()))
                });
                let outcome = fetch.outcome();
                self.fetches.borrow_mut().tags.running = Some(fetch);
                outcome
            }
        };
        let _ = outcome.await;
    }

    async fn read_both_tags(&self) {
        let began = Instant::now();
        let Access { allow, sudo, .. } = &self.config.access;
        let (allow, sudo) = futures_util::future::join(
            self.unless_asleep(self.within_total_timeout(self.groups_of_tag("access.allow", allow))),
            self.unless_asleep(self.within_total_timeout(self.groups_of_tag("access.sudo", sudo))),
        )
        .await;
        {
            let tags = &mut self.fetches.borrow_mut().tags;
            tags.last_began = Some(began);
            tags.allow_failure = allow.as_ref().err().cloned();
        }
        self.apply_tag(Policy::Login, allow, began);
        self.apply_tag(Policy::Sudo, sudo, began);
    }

    /// Stores the groups that a tag named. If the metadata service did not answer, the last value stays; any other error
    /// removes it.
    fn apply_tag(&self, policy: Policy, answer: Result<Allowed, IamError>, began: Instant) {
        let action = match policy {
            Policy::Login => "log in",
            Policy::Sudo => "use sudo",
        };
        if let Err(error) = &answer {
            let when = if matches!(error, IamError::Unavailable(_)) { "soon " } else { "" };
            self.warn(format!("{when}nobody may {action}: {error}"));
        }
        let mut cache = self.cache.borrow_mut();
        let value = match policy {
            Policy::Login => &mut cache.allow_tag,
            Policy::Sudo => &mut cache.sudo_tag,
        };
        let before = value.as_ref().map(|(allowed, _)| allowed.clone());
        match answer {
            Ok(allowed) => *value = Some((allowed, began)),
            Err(IamError::Unavailable(_)) => {}
            Err(_) => *value = None,
        }
        let now = value.as_ref().map(|(allowed, _)| allowed.clone());
        drop(cache);
        self.changes.mark_all();
        match (before, now) {
            (None, None) => {}
            (None, Some(_)) => self.dirty.mark(Dirty::Added),
            (before, now) if before == now => self.dirty.mark(Dirty::Refreshed),
            _ => self.dirty.mark(Dirty::Revoked),
        }
    }

    /// Returns `allowed`, with a tag replaced by the groups that it names. A group that does not match `within` is left
    /// out: a principal who may write tags must not choose who is root.
    async fn groups_of_tag(&self, key: &str, allowed: &Allowed) -> Result<Allowed, IamError> {
        let Allowed::Tag(TagRule { tag, within }) = allowed else { return Ok(allowed.clone()) };
        let tag = tag.as_str();
        let value = self.iam.instance_tag(tag).await.map_err(|error| match error {
            IamError::NoSuchEntity => IamError::Configuration(format!(
                "{key} is left to the instance tag {tag}, which this instance does not have, or does not show in its metadata \
                 (InstanceMetadataTags)"
            )),
            error => error,
        })?;
        let mut groups = Vec::new();
        for word in value.split([',', ' ']).filter(|word| !word.is_empty()) {
            match IamName::group(word).ok().filter(|_| within.iter().any(|pattern| pattern.matches(word))) {
                Some(group) => groups.push(group),
                None => self.warn(format!(
                    "the instance tag {tag} names {}, which {key} does not let it name",
                    Value(word)
                )),
            }
        }
        if groups.is_empty() {
            return Err(IamError::Configuration(format!(
                "the instance tag {tag} names no IAM group that {key} lets it name"
            )));
        }
        Ok(Allowed::Groups(groups))
    }
}
