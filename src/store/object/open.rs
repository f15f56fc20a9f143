//! Opens a remote store from a URL and options. Their secrets never get into an error.

use std::{str::FromStr, sync::Arc, time::Duration};

use object_store::{
    ClientConfigKey, ObjectStore, ObjectStoreScheme, RetryConfig, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, http::HttpBuilder, local::LocalFileSystem,
    memory::InMemory, path::Path,
};
use url::Url;

use crate::BoxError;

/// The store that a URL names, with its settings.
pub(super) struct Place {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    pub(super) patience: Duration,
    /// The secrets to remove from errors.
    pub(super) secrets: Secrets,
}

/// Opens the store that the URL names, with these options and, if they ask for it, the
/// environment's.
pub(super) fn open(url: &Url, options: &[(String, String)], secrets: Secrets) -> Result<Place, BoxError> {
    let own = OwnOptions::of(options)?;
    let (scheme, prefix) = ObjectStoreScheme::parse(url)?;
    if !matches!(scheme, ObjectStoreScheme::Local | ObjectStoreScheme::Memory) {
        choose_tls();
    }
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::Local => {
            none(&own.rest)?;
            Arc::new(LocalFileSystem::new())
        }
        ObjectStoreScheme::Memory => {
            none(&own.rest)?;
            Arc::new(InMemory::new())
        }
        ObjectStoreScheme::AmazonS3 => {
            let start = if own.from_env { AmazonS3Builder::from_env() } else { AmazonS3Builder::new() };
            let builder =
                own.cloud().iter().try_fold(start.with_url(url.as_str()), |builder, (key, value)| {
                    Ok::<_, BoxError>(builder.with_config(known(key)?, value))
                })?;
            Arc::new(builder.with_retry(own.retry).build()?)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let start = match own.from_env {
                true => GoogleCloudStorageBuilder::from_env(),
                false => GoogleCloudStorageBuilder::new(),
            };
            let builder =
                own.cloud().iter().try_fold(start.with_url(url.as_str()), |builder, (key, value)| {
                    Ok::<_, BoxError>(builder.with_config(known(key)?, value))
                })?;
            Arc::new(builder.with_retry(own.retry).build()?)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let start = match own.from_env {
                true => MicrosoftAzureBuilder::from_env(),
                false => MicrosoftAzureBuilder::new(),
            };
            let builder =
                own.cloud().iter().try_fold(start.with_url(url.as_str()), |builder, (key, value)| {
                    Ok::<_, BoxError>(builder.with_config(known(key)?, value))
                })?;
            Arc::new(builder.with_retry(own.retry).build()?)
        }
        ObjectStoreScheme::Http => {
            let start = HttpBuilder::new().with_url(&url[..url::Position::BeforePath]);
            // The URL itself says `http`, so no further option is required.
            let start = start.with_config(ClientConfigKey::AllowHttp, "true");
            let builder = own.cloud().iter().try_fold(start, |builder, (key, value)| {
                Ok::<_, BoxError>(builder.with_config(known(key)?, value))
            })?;
            Arc::new(builder.with_retry(own.retry).build()?)
        }
        other => return Err(format!("{other:?} is a kind of store that is not known").into()),
    };
    Ok(Place { store, prefix, patience: own.patience, secrets })
}

/// Chooses the cryptography of rustls, unless the program has chosen already. rustls chooses by
/// itself only if the program has no second provider.
fn choose_tls() {
    // Fails if a provider is installed already, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// This store's own options, and those of `object_store`.
struct OwnOptions {
    from_env: bool,
    patience: Duration,
    retry: RetryConfig,
    rest: Vec<(String, String)>,
}

impl OwnOptions {
    fn of(options: &[(String, String)]) -> Result<OwnOptions, BoxError> {
        let mut own = OwnOptions {
            from_env: false,
            patience: PATIENCE,
            retry: RetryConfig::default(),
            rest: Vec::new(),
        };
        // Only the time limits retries. A server that restarts must not be given up after a number
        // of tries.
        own.retry.max_retries = 1000;
        own.retry.backoff.max_backoff = Duration::from_secs(5);
        for (key, value) in options {
            match key.to_ascii_lowercase().as_str() {
                "from_env" => own.from_env = value.parse().map_err(|_| "from_env is true or false")?,
                "patience" => {
                    let seconds: u32 = value.parse().map_err(|_| "patience is a number of seconds")?;
                    own.patience = Duration::from_secs(seconds.into());
                }
                key => own.rest.push((key.to_owned(), value.clone())),
            }
        }
        own.retry.retry_timeout = own.patience;
        Ok(own)
    }
}

impl OwnOptions {
    /// Returns the options for a store across a network. One try may take half of the patience, so
    /// that a silent connection leaves time for a second try.
    fn cloud(&self) -> Vec<(String, String)> {
        let mut options = self.rest.clone();
        if !options.iter().any(|(key, _)| key == "timeout") {
            let half = (self.patience.as_secs() / 2).max(1);
            options.push(("timeout".to_owned(), format!("{half} seconds")));
        }
        options
    }
}

fn known<K: FromStr>(key: &str) -> Result<K, BoxError> {
    key.parse().map_err(|_| format!("there is no option {key} for this kind of store").into())
}

fn none(options: &[(String, String)]) -> Result<(), BoxError> {
    match options.first() {
        None => Ok(()),
        Some((key, _)) => Err(format!("there is no option {key} for this kind of store").into()),
    }
}

/// Texts that must not appear in an error.
#[derive(Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// Collects the secrets: a URL's user, password and query, and the options with secret names.
    pub(super) fn of(url: &str, options: &[(String, String)]) -> Secrets {
        let mut secrets = Vec::new();
        for (key, value) in options {
            let key = key.to_ascii_lowercase();
            if value.len() >= 4 && SECRET.iter().any(|word| key.contains(word)) {
                secrets.push(value.clone());
            }
        }
        if let Ok(url) = Url::parse(url) {
            secrets.extend(
                [Some(url.username()), url.password(), url.query()].into_iter().flatten().map(str::to_owned),
            );
        }
        secrets.retain(|secret| !secret.is_empty());
        // The longest come first, or a part of one would be left.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Secrets(secrets)
    }

    /// Removes secrets from a text: those known, users in URLs, and queries, which contain
    /// signatures.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.0 {
            text = text.replace(secret.as_str(), "…");
        }
        let mut redacted = String::new();
        let mut rest = text.as_str();
        while let Some(start) = rest.find("://") {
            let (before, after) = rest.split_at(start + 3);
            redacted.push_str(before);
            let end = after.find(|letter: char| letter.is_whitespace() || "\"'<>()".contains(letter));
            let (url, behind) = after.split_at(end.unwrap_or(after.len()));
            let host_end = url.find(['/', '?']).unwrap_or(url.len());
            let host = url[..host_end].rfind('@').map_or(0, |at| at + 1);
            let query = url.find('?').unwrap_or(url.len());
            redacted.push_str(&url[host..query]);
            if query < url.len() {
                redacted.push_str("?…");
            }
            rest = behind;
        }
        redacted + rest
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

/// Returns the URL without secrets, for errors.
pub(super) fn public(url: &Url) -> String {
    let mut public = url.clone();
    // Neither call fails if there is a user or password to remove.
    let _ = public.set_username("");
    let _ = public.set_password(None);
    public.set_query(None);
    public.set_fragment(None);
    public.to_string()
}

/// Parts of the names of options whose values are secret.
const SECRET: [&str; 6] = ["key", "secret", "token", "password", "credential", "sas"];

/// The time limit of one request, retries included.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_struck_out_of_texts() {
        let options = [("secret_access_key".to_owned(), "hunter2hunter2".to_owned())];
        let secrets = Secrets::of("https://me:pass@host/path?sig=abc", &options);
        let text = "PUT https://me:pass@host/path?sig=abc failed (http://u:p@h/x?y=1): hunter2hunter2, pass";
        assert_eq!(secrets.redact(text), "PUT https://host/path?… failed (http://h/x?…): …, …");
        assert_eq!(Secrets::default().redact("a://b@c d ://"), "a://c d ://");
    }

    #[test]
    fn an_option_that_is_not_known_is_named() {
        let url = Url::parse("s3://bucket/prefix").unwrap();
        let error = open(&url, &[("acess_key".to_owned(), "x".to_owned())], Secrets::default())
            .map(drop)
            .unwrap_err();
        assert_eq!(error.to_string(), "there is no option acess_key for this kind of store");
        let url = Url::parse("memory:///").unwrap();
        assert!(open(&url, &[("region".to_owned(), "x".to_owned())], Secrets::default()).is_err());
        assert!(open(&url, &[("patience".to_owned(), "x".to_owned())], Secrets::default()).is_err());
    }

    #[test]
    fn a_url_is_told_without_what_is_secret_in_it() {
        let url = Url::parse("https://me:pass@host:1/path?sig=abc#x").unwrap();
        assert_eq!(public(&url), "https://host:1/path");
    }
}
