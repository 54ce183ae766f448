//! One HTTP and TLS client for AWS, through the operator's proxy and with the operator's trusted certificates.

use std::path::Path;

use aws_sdk_iam::config::SharedHttpClient;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use pam_iam_core::once::{NO_PROXY_VARIABLES, PROXY_VARIABLES};

/// The files in which distributions have all trusted certificates. The SDK by itself opens every file of /etc/ssl/certs
/// (about 170) at each start.
const CA_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// The variables in which an operator names another file of trusted certificates.
const CA_BUNDLE_VARIABLES: [&str; 2] = ["AWS_CA_BUNDLE", "SSL_CERT_FILE"];

/// The proxy that the environment names.
#[derive(Clone, Debug)]
pub struct Proxy {
    config: ProxyConfig,
    /// The address, without user and password, and the variable.
    shown: String,
}

/// A variable that should hold the address of a proxy, and does not.
#[derive(Debug, thiserror::Error)]
#[error("{shown} is no address of a proxy")]
pub struct NotAProxy {
    /// The value, without user and password, and the variable.
    shown: String,
}

impl Proxy {
    /// Reads the proxy from the environment. None if no variable names one.
    ///
    /// # Errors
    /// Returns an error if the variable does not hold the address of a proxy.
    pub fn from_env() -> Result<Option<Self>, NotAProxy> {
        Self::named(|name| std::env::var(name).ok())
    }

    fn named(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, NotAProxy> {
        let set = |name: &&str| {
            variable(name).filter(|value| !value.is_empty()).map(|value| (name.to_string(), value))
        };
        let Some((name, address)) = PROXY_VARIABLES.iter().find_map(set) else { return Ok(None) };
        // curl takes an address without a scheme as http, too.
        let address = if address.contains("://") { address } else { format!("http://{address}") };
        let shown = format!("{} of {name}", without_password(&address));
        let config = ProxyConfig::https(address.as_str()).map_err(|_| NotAProxy { shown: shown.clone() })?;
        let config = match NO_PROXY_VARIABLES.iter().find_map(set) {
            Some((_, hosts)) => config.no_proxy(hosts),
            None => config,
        };
        Ok(Some(Self { config, shown }))
    }

    /// Returns the address, without user and password, and the variable.
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

fn without_password(address: &str) -> String {
    match address.split_once("://") {
        Some((scheme, rest)) => {
            let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            format!("{scheme}://{}", host.trim_end_matches('/'))
        }
        None => address.to_owned(),
    }
}

/// Returns an HTTP and TLS client that keeps its connections alive.
pub fn client(proxy: Option<&Proxy>) -> SharedHttpClient {
    let config = proxy.map_or_else(ProxyConfig::disabled, |proxy| proxy.config.clone());
    let context = TlsContext::builder().with_trust_store(trust_store()).build().ok();
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(config.clone());
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        let connector = connector.tls_provider(Provider::Rustls(CryptoMode::Ring));
        match &context {
            Some(context) => connector.tls_context(context.clone()).build(),
            None => connector.build(),
        }
    })
}

/// Returns the certificates of the first bundle that can be read, or those that the SDK finds if there is none.
fn trust_store() -> TrustStore {
    let named = CA_BUNDLE_VARIABLES.iter().filter_map(std::env::var_os);
    let usual = CA_BUNDLES.iter().map(Into::into);
    let bundle = named.chain(usual).find_map(|path| std::fs::read(Path::new(&path)).ok());
    match bundle {
        Some(pem) => TrustStore::empty().with_pem_certificate(pem),
        None => TrustStore::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(variables: &[(&str, &str)]) -> Option<String> {
        let value = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Proxy::named(value).unwrap().map(|proxy| proxy.shown)
    }

    #[test]
    fn the_proxy_is_named_without_its_password() {
        assert_eq!(shown(&[]), None);
        assert_eq!(shown(&[("HTTPS_PROXY", ""), ("HTTP_PROXY", "http://x")]), None);
        assert_eq!(
            shown(&[("HTTPS_PROXY", "http://me:secret@proxy:3128/"), ("NO_PROXY", "a,b")]).as_deref(),
            Some("http://proxy:3128 of HTTPS_PROXY")
        );
        assert_eq!(shown(&[("all_proxy", "proxy:3128")]).as_deref(), Some("http://proxy:3128 of all_proxy"));
    }

    #[test]
    fn a_malformed_proxy_is_an_error_that_names_the_variable() {
        let value = |name: &str| (name == "https_proxy").then(|| "http://a b".to_owned());
        assert!(
            Proxy::named(value).unwrap_err().to_string().contains("of https_proxy is no address of a proxy")
        );
    }
}
