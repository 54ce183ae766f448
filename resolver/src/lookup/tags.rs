//! Who may do what, where the configuration leaves that to a tag of the EC2 instance.

use std::rc::Rc;
use std::time::Duration;

use pam_iam_core::config::{Access, Allowed, TagRule};
use pam_iam_core::escape::Value;
use pam_iam_core::name::IamName;
use pam_iam_core::wire::Policy;
use tokio::time::Instant;

use super::Directory;
use super::fetch::{Running, shared};
use super::read_roster::ROSTER_BACK_OFF;
use crate::source::{Iam, IamError};

/// What the tags said, each with the moment before it was asked.
#[derive(Default)]
pub(super) struct Tags {
    pub(super) allow: Option<(Allowed, Instant)>,
    pub(super) sudo: Option<(Allowed, Instant)>,
    /// When they were last asked, whatever came of it.
    asked: Option<Instant>,
    /// Why nobody may log in, if that is so.
    refused: Option<IamError>,
    fetch: Option<Running<()>>,
}

impl Tags {
    /// Makes what they said older.
    pub(super) fn age(&mut self, span: Duration) {
        for held in [&mut self.allow, &mut self.sudo] {
            *held = held.take().and_then(|(who, at)| Some((who, at.checked_sub(span)?)));
        }
        self.asked = self.asked.and_then(|asked| asked.checked_sub(span));
    }
}

impl<I: Iam> Directory<I> {
    /// Who may do what, with every tag read. Whoever keeps the roster reads them as often; here they are read if that has
    /// not been done for twice as long.
    ///
    /// # Errors
    /// The tag of `access.allow` cannot be read, or names nobody. If it is so with `access.sudo`, that is "none".
    pub async fn access(self: &Rc<Self>) -> Result<Rc<Access>, IamError> {
        self.access_within(self.config.freshness.roster.0 * 2).await
    }

    /// The same with tags that were asked for within so long.
    ///
    /// # Errors
    /// Those of [`Self::access`].
    pub(super) async fn access_within(self: &Rc<Self>, age: Duration) -> Result<Rc<Access>, IamError> {
        if !self.has_tags() {
            return Ok(Rc::clone(&self.fixed_access));
        }
        let asked = self.state.borrow().tags.asked;
        if asked.is_none_or(|asked| asked.elapsed() >= age) {
            self.read_tags().await;
            self.settle().await;
        }
        self.access_by_tags()
    }

    fn has_tags(&self) -> bool {
        let Access { allow, sudo, .. } = &self.config.access;
        [allow, sudo].into_iter().any(|who| matches!(who, Allowed::Tag(_)))
    }

    /// What was last read, as far as it still serves: while the metadata service is silent, as long as an answer of IAM.
    fn access_by_tags(&self) -> Result<Rc<Access>, IamError> {
        let state = self.state.borrow();
        let Tags { allow, sudo, refused, .. } = &state.tags;
        let freshness = &self.config.freshness;
        let serves = |held: &Option<(Allowed, Instant)>, limit: Duration| {
            held.clone().filter(|(_, at)| at.elapsed() < limit).map(|(who, _)| who)
        };
        let unread = || IamError::Unreachable("the instance's tags were not read".to_owned());
        let allow =
            serves(allow, freshness.offline.0).ok_or_else(|| refused.clone().unwrap_or_else(unread))?;
        let sudo = serves(sudo, freshness.offline_sudo.0).unwrap_or(Allowed::None);
        Ok(Rc::new(Access { allow, sudo, deny: self.config.access.deny.clone() }))
    }

    /// Reads the tags, unless that failed a moment ago. Who comes while they are being read shares the reading.
    async fn read_tags(self: &Rc<Self>) {
        let (running, failed) = {
            let tags = &self.state.borrow().tags;
            let recent = tags.asked.is_some_and(|asked| asked.elapsed() < ROSTER_BACK_OFF);
            (tags.fetch.as_ref().and_then(Running::under_way), recent && tags.refused.is_some())
        };
        if running.is_none() && failed {
            return;
        }
        let fetch = running.unwrap_or_else(|| {
            let this = Rc::clone(self);
            let (running, fetch) = shared(async move {
                this.read_both_tags().await;
                this.state.borrow_mut().tags.fetch = None;
                Ok(Rc::new(()))
            });
            self.state.borrow_mut().tags.fetch = Some(running);
            fetch
        });
        let _ = fetch.await;
    }

    async fn read_both_tags(&self) {
        let at = Instant::now();
        let Access { allow, sudo, .. } = &self.config.access;
        let both = futures_util::future::join(
            self.awake(self.limited(self.groups_of_tag("access.allow", allow))),
            self.awake(self.limited(self.groups_of_tag("access.sudo", sudo))),
        );
        let (allow, sudo) = both.await;
        self.state.borrow_mut().tags.asked = Some(at);
        self.heard_tag(Policy::Login, allow, at);
        self.heard_tag(Policy::Sudo, sudo, at);
    }

    /// An answer counts at once; silence leaves the last one in force as long as it may serve.
    fn heard_tag(&self, policy: Policy, answer: Result<Allowed, IamError>, at: Instant) {
        let what = match policy {
            Policy::Login => "log in",
            Policy::Sudo => "use sudo",
        };
        if let Err(error) = &answer {
            let now = if matches!(error, IamError::Unreachable(_)) { "soon " } else { "" };
            self.warn(format!("{now}nobody may {what}: {error}"));
        }
        let mut state = self.state.borrow_mut();
        if let Policy::Login = policy {
            state.tags.refused = answer.as_ref().err().cloned();
        }
        let held = match policy {
            Policy::Login => &mut state.tags.allow,
            Policy::Sudo => &mut state.tags.sudo,
        };
        let before = held.as_ref().map(|(who, _)| who.clone());
        match answer {
            Ok(who) => *held = Some((who, at)),
            Err(IamError::Unreachable(_)) => {}
            Err(_) => *held = None,
        }
        let now = held.as_ref().map(|(who, _)| who.clone());
        drop(state);
        match (before, now) {
            (None, None) => {}
            (None, Some(_)) => self.changed(),
            (before, now) if before == now => self.refreshed(),
            _ => self.count_revocation(),
        }
    }

    /// Puts the groups that a tag names in its place. A group that the configuration does not list among those that a
    /// tag may name is left out: who may write tags must not choose who is root.
    async fn groups_of_tag(&self, what: &str, who: &Allowed) -> Result<Allowed, IamError> {
        let Allowed::Tag(TagRule { tag, within }) = who else { return Ok(who.clone()) };
        let tag = tag.as_str();
        let value = self.iam.instance_tag(tag).await.map_err(|error| match error {
            IamError::NoSuchEntity => IamError::Configuration(format!(
                "{what} is left to the instance tag {tag}, which this instance does not have, or does not show in \
                 its metadata (InstanceMetadataTags)"
            )),
            error => error,
        })?;
        let mut groups = Vec::new();
        for word in value.split([',', ' ']).filter(|word| !word.is_empty()) {
            match IamName::group(word).ok().filter(|_| within.iter().any(|pattern| pattern.matches(word))) {
                Some(group) => groups.push(group),
                None => self.warn(format!(
                    "the instance tag {tag} names {}, which {what} does not let it name",
                    Value(word)
                )),
            }
        }
        if groups.is_empty() {
            return Err(IamError::Configuration(format!(
                "the instance tag {tag} names no IAM group that {what} lets it name"
            )));
        }
        Ok(Allowed::Groups(groups))
    }
}
