//! `iamctl whois`: tells whose a uid is. NSS shows only users who may log in; of others `ls` shows only the uid.

use std::path::Path;

use pam_iam_core::client::ClientError;
use pam_iam_core::id::Uid;
use pam_iam_core::name::LinuxName;
use pam_iam_core::served::Served;
use pam_iam_core::wire::{Explanation, Holder, Request};
use pam_iam_core::{local, paths};
use serde_json::json;

use crate::error::{Error, Reply};
use crate::host::FileError;
use crate::{Context, explain};

/// Prints whose a uid is, and whether NSS shows the user and why. Returns whether that is known.
///
/// # Errors
/// Returns an error if there is no answer.
pub fn run(context: &Context, uid: Uid) -> Result<Reply, Error> {
    let local = local::account_by_uid(Path::new(paths::PASSWD), uid).map_err(FileError::of(paths::PASSWD))?;
    if let Some(account) = local.filter(|_| !uid.is_managed()) {
        let json = json!({ "uid": uid, "name": account.name, "local": true });
        context.output.show(&json, &format!("uid {uid} is that of the local account {}", account.name));
        return Ok(Reply::Yes);
    }
    if !uid.is_managed() {
        let why = format!("uid {uid} is outside of the range of IAM users, and no local account has it");
        context.output.show(&json!({ "uid": uid, "name": null }), &why);
        return Ok(Reply::No);
    }
    let Some(name) = name_of(context, uid)? else {
        let why =
            format!("uid {uid} is in the range of IAM users, and nothing here tells whose it is or was");
        context.output.show(&json!({ "uid": uid, "name": null }), &why);
        return Ok(Reply::No);
    };
    let explanation: Explanation = context.report(&Request::Explain { name: name.clone() })?;
    let is_now = explanation.uid == Some(uid);
    let whose = match explanation.uid {
        _ if is_now => format!("uid {uid} is that of {name}"),
        Some(other) => format!("uid {uid} was that of {name}, a name that now goes with uid {other}"),
        None => format!("uid {uid} was that of {name}, whom IAM no longer has"),
    };
    let mut json = serde_json::to_value(&explanation)?;
    if let Some(object) = json.as_object_mut() {
        object.insert("asked_uid".to_owned(), json!(uid));
        object.insert("has_it_now".to_owned(), json!(is_now));
    }
    let text = explain::text(&explanation, None, &context.output);
    context.output.show(&json, &format!("{whose}\n{text}"));
    Ok(Reply::Yes)
}

/// Returns the Linux name of the user who has a managed uid, or last had it here: by passwd(5), the resolver, or the list of all users who
/// ever logged in here.
///
/// # Errors
/// Returns an error if the resolver does not answer and the list does not have the uid.
pub fn name_of(context: &Context, uid: Uid) -> Result<Option<LinuxName>, ClientError> {
    let local = local::account_by_uid(Path::new(paths::PASSWD), uid).ok().flatten();
    if let Some(name) = local.and_then(|account| LinuxName::new(&account.name).ok()) {
        return Ok(Some(name));
    }
    let holder = context.report::<Holder>(&Request::WhoIs { uid });
    if let Ok(Holder { name: Some(name) }) = holder {
        return Ok(Some(name));
    }
    match Served::new(Path::new(paths::SERVED)).name_of(uid) {
        Some(name) => Ok(Some(name)),
        None => holder.map(|_| None),
    }
}
