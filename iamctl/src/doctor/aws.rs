//! The way to IAM: instance metadata, credentials, clock, permissions.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use pam_iam_core::config::Config;
use pam_iam_core::paths;
use pam_iam_core::wire::{Request, SelfTested, Try};

use super::Finding;
use crate::Context;

/// The instance metadata service, and the one for IPv6 (EC2 user guide).
const METADATA: [&str; 2] = ["169.254.169.254:80", "[fd00:ec2::254]:80"];

/// How long the metadata service may take. On an instance it answers within 1 ms.
const METADATA_PATIENCE: Duration = Duration::from_secs(1);

/// Asks the metadata service for a token, as the SDK does. Does nothing if the credentials come from elsewhere.
pub fn metadata(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "metadata";
    let environment = std::fs::read_to_string(paths::ENVIRONMENT).unwrap_or_default();
    let elsewhere = environment.lines().any(|line| line.starts_with("AWS_ACCESS_KEY_ID="))
        || config.aws.profile.is_some();
    if elsewhere {
        return Vec::new();
    }
    let address = metadata_address(&environment);
    let first = address.to_socket_addrs().ok().and_then(|mut all| all.next());
    let Some(Ok(mut stream)) = first.map(|first| TcpStream::connect_timeout(&first, METADATA_PATIENCE))
    else {
        return vec![Finding::warning(
            CHECK,
            format!("there is no instance metadata service at {address}"),
            format!("outside EC2, put AWS_ACCESS_KEY_ID and the like into {}", paths::ENVIRONMENT),
        )];
    };
    let request = format!(
        "PUT /latest/api/token HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\
         X-aws-ec2-metadata-token-ttl-seconds: 60\r\nConnection: close\r\n\r\n",
        address.trim_end_matches(":80")
    );
    let mut answer = Vec::new();
    let asked = stream
        .set_read_timeout(Some(METADATA_PATIENCE))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .and_then(|()| stream.take(4096).read_to_end(&mut answer));
    let answer = String::from_utf8_lossy(&answer);
    match asked {
        Ok(_) if answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200") => {
            vec![Finding::ok(CHECK, "gives tokens (version 2)")]
        }
        Ok(_) => vec![Finding::wrong(
            CHECK,
            format!(
                "the instance metadata service refuses a token: {}",
                answer.lines().next().unwrap_or_default()
            ),
            "aws ec2 modify-instance-metadata-options --http-endpoint enabled",
        )],
        Err(_) => vec![Finding::wrong(
            CHECK,
            "the instance metadata service is there and its token does not arrive",
            "in a container or behind a router the hop limit is too low: aws ec2 modify-instance-metadata-options \
             --http-put-response-hop-limit 2",
        )],
    }
}

/// Returns the address at which the resolver finds the metadata service, by the variables that the SDK reads.
fn metadata_address(environment: &str) -> String {
    let value = |name: &str| {
        let of = |line: &str| {
            Some(line.trim().strip_prefix(name)?.strip_prefix('=')?.trim_matches('"').to_owned())
        };
        environment.lines().filter_map(of).next_back().filter(|value| !value.is_empty())
    };
    if let Some(endpoint) = value("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        let host = endpoint.trim_start_matches("http://").split('/').next().unwrap_or_default();
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        return if has_port { host.to_owned() } else { format!("{host}:80") };
    }
    let is_v6 =
        value("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE").is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
    let [v4, v6] = METADATA;
    if is_v6 { v6 } else { v4 }.to_owned()
}

/// Tries each API action that the resolver needs.
pub fn permissions(context: &Context) -> Vec<Finding> {
    const CHECK: &str = "IAM";
    let SelfTested { checks, route } = match context.report(&Request::SelfTest) {
        Ok(tested) => tested,
        Err(why) => return vec![Finding::wrong(CHECK, why, "mend the resolver first")],
    };
    if let Some(why) = route.proxy_error {
        return vec![Finding::wrong(
            "proxy",
            format!("{why}, so none is used"),
            format!("write http://HOST:PORT in {}, and restart iam-resolver", paths::ENVIRONMENT),
        )];
    }
    let failed: Vec<&Try> = checks.iter().filter(|tried| tried.error.is_some()).collect();
    if failed.is_empty() {
        let actions: Vec<&str> = checks.iter().map(|tried| tried.action.as_str()).collect();
        return vec![
            Finding::ok("clock", "IAM takes our signatures"),
            Finding::ok(CHECK, format!("{}: {}", route.way, actions.join(" "))),
        ];
    }
    // One cause is reported once, however many calls it has made fail.
    let mut findings: Vec<Finding> = failed.iter().map(|tried| diagnose(tried, &route.way)).collect();
    findings.dedup_by(|one, other| one.check == other.check && one.fix == other.fix);
    findings
}

fn diagnose(tried: &Try, way: &str) -> Finding {
    let why = tried.error.clone().unwrap_or_default();
    let action = &tried.action;
    let says = |words: &[&str]| words.iter().any(|word| why.contains(word));
    if tried.denied {
        return Finding::wrong(
            "permissions",
            format!("IAM denies {action}: {why}"),
            format!("allow {action} in the policy of this host's role"),
        );
    }
    if says(&["Signature expired", "Signature not yet current", "RequestExpired", "RequestTimeTooSkewed"]) {
        return Finding::wrong(
            "clock",
            format!("IAM refuses our clock: {why}"),
            "set the clock: systemctl enable --now chronyd",
        );
    }
    let credentials = [
        "InvalidClientTokenId",
        "ExpiredToken",
        "UnrecognizedClient",
        "SignatureDoesNotMatch",
        "no providers in chain",
        "credentials provider",
        "could not load credentials",
        "MissingAuthenticationToken",
    ];
    if says(&credentials) {
        return Finding::wrong(
            "credentials",
            why,
            format!("give the instance a role, or mend what is in {}", paths::ENVIRONMENT),
        );
    }
    if why.contains("instance tag") {
        return Finding::wrong("tags", why, "tag the instance, and switch InstanceMetadataTags on");
    }
    if says(&["Throttl", "Rate exceeded", "LimitExceeded", "TooManyRequests"]) {
        return Finding::wrong(
            "IAM",
            format!("IAM throttles {action}: {why}"),
            "the limit is that of the whole AWS account: raise freshness.max_age, and see what else there asks IAM",
        );
    }
    if says(&["InternalFailure", "ServiceUnavailable", "503", "500"]) {
        return Finding::wrong(
            "IAM",
            format!("IAM answers {action} with an error of its own, by way of {way}: {why}"),
            "wait, and see the AWS Health Dashboard; what is known serves meanwhile",
        );
    }
    Finding::wrong(
        "IAM",
        format!("{action} brings no answer by way of {way}: {why}"),
        "see that this host gets there by HTTPS: its route, its name server, the proxy, aws.region and aws.endpoint",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_service_is_found_by_the_resolvers_environment() {
        for (environment, address) in [
            ("", "169.254.169.254:80"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6\n", "[fd00:ec2::254]:80"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT=http://[fd00:ec2::254]/\n", "[fd00:ec2::254]:80"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT=\"http://127.0.0.1:1338\"\n", "127.0.0.1:1338"),
            ("# AWS_EC2_METADATA_SERVICE_ENDPOINT=http://x\n", "169.254.169.254:80"),
        ] {
            assert_eq!(metadata_address(environment), address, "{environment}");
        }
    }
}
