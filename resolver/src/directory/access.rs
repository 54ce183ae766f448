//! Who may do what, where the configuration leaves that to a tag of the EC2 instance.

use std::rc::Rc;

use pam_iam_core::config::{Access, TagRule, Who};
use pam_iam_core::escape::Value;
use pam_iam_core::name::IamName;
use tokio::time::Instant;

use super::{Directory, shared};
use crate::iam::{Iam, IamError};

impl<I: Iam> Directory<I> {
    /// Who may do what, with every tag read. A reading as old as the roster will do, and while the metadata service is
    /// silent one as old as `freshness.offline`.
    ///
    /// # Errors
    /// The tag of `access.allow` cannot be read, or names nobody. That of `access.sudo` is then taken for "none".
    pub async fn access(self: &Rc<Self>) -> Result<Rc<Access>, IamError> {
        let freshness = &self.config.freshness;
        let known = self.state.borrow().access.clone();
        if let Some((access, at)) = &known
            && at.elapsed() < freshness.roster.0
        {
            return Ok(Rc::clone(access));
        }
        match (self.read_access().await, known) {
            (Err(IamError::Unreachable(_)), Some((access, at))) if at.elapsed() < freshness.offline.0 => {
                Ok(access)
            }
            (access, _) => access,
        }
    }

    /// Reads the tags. Who comes while they are being read shares the reading.
    async fn read_access(self: &Rc<Self>) -> Result<Rc<Access>, IamError> {
        let access = &self.config.access;
        if ![&access.allow, &access.sudo].into_iter().any(|who| matches!(who, Who::Tag(_))) {
            let access = Rc::new(access.clone());
            self.state.borrow_mut().access = Some((Rc::clone(&access), Instant::now()));
            return Ok(access);
        }
        let running = self.state.borrow().access_fetch.clone().filter(|fetch| fetch.peek().is_none());
        let fetch = running.unwrap_or_else(|| {
            let this = Rc::clone(self);
            let fetch = shared(async move {
                let at = Instant::now();
                let result = this.limited(this.resolve()).await.map(Rc::new);
                let mut state = this.state.borrow_mut();
                state.access_fetch = None;
                match &result {
                    Ok(access) => state.access = Some((Rc::clone(access), at)),
                    // No answer: the last one may still serve.
                    Err(IamError::Unreachable(_)) => {}
                    Err(_) => state.access = None,
                }
                drop(state);
                if let Err(error) = &result {
                    this.warn(format!("nobody may log in: {error}"));
                }
                result
            });
            self.state.borrow_mut().access_fetch = Some(fetch.clone());
            fetch
        });
        fetch.await
    }

    async fn resolve(&self) -> Result<Access, IamError> {
        let Access { allow, sudo } = &self.config.access;
        let allow = self.groups_of_tag("access.allow", allow).await?;
        let sudo = match self.groups_of_tag("access.sudo", sudo).await {
            Ok(sudo) => sudo,
            Err(IamError::Configuration(why)) => {
                self.warn(format!("nobody may use sudo: {why}"));
                Who::None
            }
            Err(error) => return Err(error),
        };
        Ok(Access { allow, sudo })
    }

    /// Puts the groups that a tag names in its place. A group that the configuration does not list among those that a
    /// tag may name is left out: who may write tags must not choose who is root.
    async fn groups_of_tag(&self, what: &str, who: &Who) -> Result<Who, IamError> {
        let Who::Tag(TagRule { tag, within }) = who else { return Ok(who.clone()) };
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
        Ok(Who::Groups(groups))
    }
}
