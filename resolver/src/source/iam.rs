//! AWS IAM, called through the AWS SDK.

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use aws_config::imds;
use aws_config::imds::client::error::ImdsError;
use aws_config::provider_config::ProviderConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_sdk_iam::Client;
use aws_sdk_iam::config::retry::RetryConfig;
use aws_sdk_iam::config::{ProvideCredentials, SharedCredentialsProvider, SharedHttpClient};
use aws_sdk_iam::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_iam::types::{EncodingType, StatusType, User};
use pam_iam_core::config::Aws as Settings;
use pam_iam_core::name::IamName;
use pam_iam_core::wire::Route;
use tokio::time::Instant;

use super::http::{self, NotAProxy, Proxy};
use crate::source::{CallStats, Cause, Iam, IamError, IamGroup, IamId, IamUser, KeyIds};

/// The number of tries per call, within `aws.total_timeout`.
const ATTEMPTS: u32 = 3;

/// The first pause between two tries. Each further pause is twice as long, with jitter.
const BACKOFF: Duration = Duration::from_millis(50);

/// The error code of IAM for a key that cannot be written in SSH's encoding.
const NO_SSH_KEY: &str = "UnrecognizedPublicKeyEncoding";

/// The number of entries per page: the most that IAM gives.
const PAGE: i32 = 1000;

/// The path at which the metadata service has the tags of the instance (EC2 user guide, "View tags using instance
/// metadata").
const INSTANCE_TAGS: &str = "/latest/meta-data/tags/instance";

/// The most pages of a list: more than any account can fill (5,000 users, 300 groups).
const PAGES_MAX: usize = 1000;

/// The region if nothing names one. Calls to IAM in the partition `aws` are always signed for it.
const DEFAULT_REGION: &str = "us-east-1";

/// The SDK's clients of IAM and of the metadata service.
pub struct AwsIam {
    client: Client,
    metadata: imds::Client,
    /// How IAM is reached.
    route: Route,
    stats: RefCell<CallStats>,
}

impl AwsIam {
    /// Returns a client with the credentials of the SDK's own chain (environment, profile, web identity, instance profile
    /// over IMDSv2), in the role that the configuration names, if any. Makes no call to IAM.
    pub async fn new(settings: &Settings) -> Self {
        let proxy = Proxy::from_env();
        let http = http::client(proxy.as_ref().ok().and_then(Option::as_ref));
        let shared = loader(settings, &http).load().await;
        let signing = Region::new(signing_region(shared.region().map(Region::as_ref)));
        let metadata = imds::Client::builder()
            .configure(&ProviderConfig::default().with_http_client(http))
            .connect_timeout(settings.connect_timeout.0)
            .read_timeout(settings.call_timeout.0)
            .operation_timeout(settings.total_timeout.0)
            .build();
        let route = route(proxy, settings.endpoint.as_deref(), signing.as_ref());
        let mut config = aws_sdk_iam::config::Builder::from(&shared).region(signing);
        if let Some(endpoint) = &settings.endpoint {
            config = config.endpoint_url(endpoint);
        }
        if let Some(role) = &settings.assume_role {
            config = config.credentials_provider(assumed(role, settings, &shared).await);
        }
        Self { client: Client::from_conf(config.build()), metadata, route, stats: RefCell::default() }
    }

    /// Awaits a call, classifies its failure and counts it.
    async fn call<T, E>(&self, call: impl Future<Output = Result<T, SdkError<E>>>) -> Result<T, IamError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.stats.borrow_mut().calls += 1;
        let answer = call.await.map_err(classify);
        self.note(answer)
    }

    fn note<T>(&self, answer: Result<T, IamError>) -> Result<T, IamError> {
        if let Err(error @ (IamError::Denied(_) | IamError::Unavailable(_))) = &answer {
            let mut stats = self.stats.borrow_mut();
            // A denied call got an answer, so it is no error.
            stats.errors += u64::from(matches!(error, IamError::Unavailable(_)));
            stats.last_error = Some(error.to_string());
        }
        if !matches!(answer, Err(IamError::Unavailable(_))) {
            self.stats.borrow_mut().last_answer = Some(Instant::now());
        }
        answer
    }
}

impl Iam for AwsIam {
    async fn user(&self, name: &IamName) -> Result<IamUser, IamError> {
        let answer = self.call(self.client.get_user().user_name(name.as_str()).send()).await?;
        let user = answer.user().ok_or_else(|| nonsense("GetUser without a user"))?;
        iam_user(user)
    }

    async fn groups_of(&self, name: &IamName) -> Result<Vec<IamGroup>, IamError> {
        paged(async |marker| {
            let call = self.client.list_groups_for_user().user_name(name.as_str());
            let page = self.call(call.max_items(PAGE).set_marker(marker).send()).await?;
            let groups = page.groups().iter().map(|group| iam_group(group.group_name(), group.group_id()));
            Ok((groups.collect::<Result<_, _>>()?, next(page.is_truncated(), page.marker())?))
        })
        .await
    }

    async fn keys_of(&self, name: &IamName) -> Result<KeyIds, IamError> {
        let listed = paged(async |marker| {
            let call = self.client.list_ssh_public_keys().user_name(name.as_str());
            let page = self.call(call.max_items(PAGE).set_marker(marker).send()).await?;
            Ok((page.ssh_public_keys().to_vec(), next(page.is_truncated(), page.marker())?))
        });
        let mut ids = KeyIds::default();
        for key in listed.await? {
            ids.add(key.ssh_public_key_id().to_owned(), *key.status() == StatusType::Active);
        }
        Ok(ids)
    }

    async fn key_body(&self, name: &IamName, key: &str) -> Result<String, IamError> {
        let call = self.client.get_ssh_public_key().user_name(name.as_str()).ssh_public_key_id(key);
        let answer = call.encoding(EncodingType::Ssh).send().await;
        if let Err(error) = &answer
            && error.as_service_error().and_then(ProvideErrorMetadata::code) == Some(NO_SSH_KEY)
        {
            // This is an answer about this key only. The key has no SSH form, and an empty body is refused like a
            // malformed one.
            return Ok(String::new());
        }
        let answer = self.call(async { answer }).await?;
        let key = answer.ssh_public_key().ok_or_else(|| nonsense("GetSSHPublicKey without a key"))?;
        Ok(key.ssh_public_key_body().to_owned())
    }

    async fn group(&self, name: &IamName) -> Result<(IamGroup, Vec<IamUser>), IamError> {
        let mut found = None;
        let members = paged(async |marker| {
            let call = self.client.get_group().group_name(name.as_str());
            let page = self.call(call.max_items(PAGE).set_marker(marker).send()).await?;
            let group = page.group().ok_or_else(|| nonsense("GetGroup without a group"))?;
            found = Some(iam_group(group.group_name(), group.group_id())?);
            let users = page.users().iter().map(iam_user).collect::<Result<_, _>>()?;
            Ok((users, next(page.is_truncated(), page.marker())?))
        })
        .await?;
        let group = found.ok_or_else(|| nonsense("GetGroup without a page"))?;
        // IAM may ignore the case of the name, which the configuration gives exactly.
        if group.name != *name {
            return Err(IamError::NoSuchEntity);
        }
        Ok((group, members))
    }

    async fn all_users(&self) -> Result<Vec<IamUser>, IamError> {
        paged(async |marker| {
            let page = self.call(self.client.list_users().max_items(PAGE).set_marker(marker).send()).await?;
            let users = page.users().iter().map(iam_user).collect::<Result<_, _>>()?;
            Ok((users, next(page.is_truncated(), page.marker())?))
        })
        .await
    }

    async fn instance_tag(&self, tag: &str) -> Result<String, IamError> {
        match self.metadata.get(format!("{INSTANCE_TAGS}/{tag}")).await {
            Ok(value) => Ok(value.into()),
            Err(ImdsError::ErrorResponse(answer)) if answer.response().status().as_u16() == 404 => {
                Err(IamError::NoSuchEntity)
            }
            Err(error) => Err(Cause::Metadata(chain(&error)).into()),
        }
    }

    fn route(&self) -> Route {
        self.route.clone()
    }

    fn stats(&self) -> CallStats {
        self.stats.borrow().clone()
    }
}

fn loader(settings: &Settings, http: &SharedHttpClient) -> ConfigLoader {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(settings.connect_timeout.0)
        .operation_attempt_timeout(settings.call_timeout.0)
        .operation_timeout(settings.total_timeout.0)
        .build();
    let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(BACKOFF);
    let region = settings.region.clone().map(Region::new);
    let region = aws_config::meta::region::RegionProviderChain::first_try(region)
        .or_default_provider()
        .or_else(Region::new(DEFAULT_REGION));
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        .timeout_config(timeouts)
        .retry_config(retries)
        .region(region);
    if let Ok(name) = AppName::new("pam_iam") {
        loader = loader.app_name(name);
    }
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    loader
}

/// Returns the region for which calls to IAM are signed: IAM is one service for a whole partition, in one region of it
/// (AWS General Reference, "IAM endpoints"). `own` is the region of the host, which STS uses.
fn signing_region(own: Option<&str>) -> &'static str {
    let partition = own.unwrap_or_default().rsplit_once('-').map_or("", |(area, _)| area);
    match partition {
        area if area.starts_with("cn-") => "cn-north-1",
        area if area.starts_with("us-gov-") => "us-gov-west-1",
        area if area.starts_with("us-isob-") => "us-isob-east-1",
        area if area.starts_with("us-iso-") => "us-iso-east-1",
        area if area.starts_with("eusc-") => "eusc-de-east-1",
        _ => DEFAULT_REGION,
    }
}

/// Returns how IAM is reached, for `iamctl doctor`.
fn route(proxy: Result<Option<Proxy>, NotAProxy>, endpoint: Option<&str>, region: &str) -> Route {
    let way = endpoint.map_or_else(|| format!("IAM's endpoint for {region}"), str::to_owned);
    match proxy {
        Ok(Some(proxy)) if !way.starts_with("http:") => {
            Route { way: format!("{way}, through the proxy {}", proxy.shown()), proxy_error: None }
        }
        Ok(_) => Route { way, proxy_error: None },
        Err(why) => Route { way, proxy_error: Some(why.to_string()) },
    }
}

/// Returns the credentials of `role`. Its sessions have the name of this host, so that CloudTrail shows which host made a
/// call.
async fn assumed(role: &str, settings: &Settings, shared: &SdkConfig) -> impl ProvideCredentials + use<> {
    let mut provider = AssumeRoleProvider::builder(role).configure(shared).session_name(session_name());
    if let Some(id) = &settings.external_id {
        provider = provider.external_id(id);
    }
    match shared.credentials_provider() {
        Some(own) => SharedCredentialsProvider::new(provider.build_from_provider(own).await),
        None => SharedCredentialsProvider::new(provider.build().await),
    }
}

/// Returns `pam_iam-HOST`, in 2 to 64 of `[\w+=,.@-]` (STS API reference, `AssumeRole`).
fn session_name() -> String {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy().into_owned();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(c);
    format!("pam_iam-{host}").chars().map(|c| if allowed(c) { c } else { '-' }).take(64).collect()
}

/// Reads a list page by page. Returns all its entries.
async fn paged<T>(
    mut page: impl AsyncFnMut(Option<String>) -> Result<(Vec<T>, Option<String>), IamError>,
) -> Result<Vec<T>, IamError> {
    let mut all = Vec::new();
    let mut marker = None;
    for _ in 0..PAGES_MAX {
        let (mut entries, next) = page(marker.clone()).await?;
        all.append(&mut entries);
        if next.is_none() {
            return Ok(all);
        }
        if next == marker {
            return Err(nonsense("a list that leads to the same page again"));
        }
        marker = next;
    }
    Err(nonsense("a list without an end"))
}

/// Returns the marker of the next page, or None after the last. A page that is cut off without a marker is an error.
fn next(is_truncated: bool, marker: Option<&str>) -> Result<Option<String>, IamError> {
    match (is_truncated, marker) {
        (false, _) => Ok(None),
        (true, Some(marker)) if !marker.is_empty() => Ok(Some(marker.to_owned())),
        (true, _) => Err(nonsense("a page that is cut off and has no marker")),
    }
}

fn iam_user(user: &User) -> Result<IamUser, IamError> {
    let name =
        IamName::user(user.user_name()).map_err(|why| nonsense(&format!("a user whose name {why}")))?;
    let id =
        IamId::new(user.user_id()).ok_or_else(|| nonsense(&format!("user {name} without a proper id")))?;
    Ok(IamUser { name, id, created: user.create_date().secs() })
}

fn iam_group(name: &str, id: &str) -> Result<IamGroup, IamError> {
    let name = IamName::group(name).map_err(|why| nonsense(&format!("a group whose name {why}")))?;
    let id = IamId::new(id).ok_or_else(|| nonsense(&format!("group {name} without a proper id")))?;
    Ok(IamGroup { name, id })
}

fn nonsense(what: &str) -> IamError {
    Cause::Malformed(what.to_owned()).into()
}

/// Turns an error of the SDK into an [`IamError`]. "No such entity" and "access denied" are answers. All other failures,
/// such as refused or expired credentials, say nothing about the user.
fn classify<E>(error: SdkError<E>) -> IamError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
    match code {
        Some("NoSuchEntity") => IamError::NoSuchEntity,
        Some("AccessDenied" | "AccessDeniedException") => {
            let message = error.as_service_error().and_then(ProvideErrorMetadata::message);
            IamError::Denied(message.unwrap_or("no reason given").to_owned())
        }
        _ => Cause::Call(chain(&error)).into(),
    }
}

/// Returns an error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pages(script: &[(&[u32], Option<&str>)]) -> Result<Vec<u32>, IamError> {
        let mut pages = script.iter();
        paged(async |_| {
            let (entries, marker) = pages.next().unwrap();
            Ok((entries.to_vec(), marker.map(str::to_owned)))
        })
        .await
    }

    #[tokio::test(flavor = "local")]
    async fn a_list_is_read_to_its_end() {
        assert_eq!(pages(&[(&[1, 2], Some("a")), (&[], Some("b")), (&[3], None)]).await.unwrap(), [1, 2, 3]);
    }

    #[tokio::test(flavor = "local")]
    async fn a_list_that_turns_in_a_circle_or_breaks_off_is_no_answer() {
        assert!(pages(&[(&[1], Some("a")), (&[2], Some("a"))]).await.is_err());
        assert!(next(true, None).is_err() && next(true, Some("")).is_err());
        assert_eq!(next(false, Some("x")), Ok(None));
    }

    #[test]
    fn the_partition_says_which_region_signs() {
        for (own, signs) in [
            (Some("eu-central-1"), "us-east-1"),
            (Some("cn-northwest-1"), "cn-north-1"),
            (Some("us-gov-east-1"), "us-gov-west-1"),
            (Some("us-isob-east-1"), "us-isob-east-1"),
            (None, "us-east-1"),
        ] {
            assert_eq!(signing_region(own), signs, "{own:?}");
        }
    }

    #[test]
    fn a_session_is_named_after_the_host() {
        let name = session_name();
        assert!(name.starts_with("pam_iam-") && (9..=64).contains(&name.len()), "{name}");
    }
}
