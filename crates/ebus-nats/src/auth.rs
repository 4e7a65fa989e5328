//! Who we are to the server. Secrets are never shown.

use std::fmt;
use std::path::PathBuf;

use async_nats::ConnectOptions;
use ebus_core::{Error, ErrorKind};

/// Text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How a connection proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    Token(Secret),
    User { user: String, password: Secret },
    Nkey(Secret),
    File(PathBuf),
    Text(Secret),
}

/// How a connection is encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Tls {
    pub(crate) required: bool,
    pub(crate) first: bool,
    pub(crate) root: Option<PathBuf>,
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

impl Credentials {
    /// # Errors
    /// `ConfigInvalid` for a credentials file that cannot be read.
    pub(crate) async fn apply(&self, options: ConnectOptions) -> Result<ConnectOptions, Error> {
        Ok(match self {
            Self::Token(token) => options.token(token.0.clone()),
            Self::User { user, password } => options.user_and_password(user.clone(), password.0.clone()),
            Self::Nkey(seed) => options.nkey(seed.0.clone()),
            Self::File(path) => options.credentials_file(path).await.map_err(|error| {
                Error::new(ErrorKind::ConfigInvalid, "the credentials file cannot be read")
                    .with_operation("connect")
                    .with_context("credentials", path.display())
                    .with_source(error)
            })?,
            Self::Text(text) => options.credentials(&text.0).map_err(|error| {
                Error::new(
                    ErrorKind::ConfigInvalid,
                    "the credentials are not a JWT and a seed in the form of a .creds file",
                )
                .with_operation("connect")
                .with_source(error)
            })?,
        })
    }
}

impl Tls {
    pub(crate) fn is_asked_for(&self) -> bool {
        self.required || self.first || self.root.is_some() || self.client.is_some()
    }

    pub(crate) fn apply(&self, mut options: ConnectOptions) -> ConnectOptions {
        if self.is_asked_for() {
            options = options.require_tls(true);
        }
        if self.first {
            options = options.tls_first();
        }
        if let Some(path) = &self.root {
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &self.client {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        options
    }
}
