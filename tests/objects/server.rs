//! `s3-server FOLDER PORT KEY SECRET [tls]`: serves the folders in FOLDER as buckets on 127.0.0.1.
//! Port 0 selects a free one, and the only line on standard output names it. The server ends with
//! its standard input. With `tls` it has a self-signed certificate that clients do not trust.

use std::{env, error::Error, io::Read as _, sync::Arc};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use s3s::{
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    runtime::Runtime,
};
use tokio_rustls::{TlsAcceptor, rustls};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (folder, port, key, secret, tls) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        [folder, port, key, secret] => (folder, port, key, secret, None),
        [folder, port, key, secret, "tls"] => (folder, port, key, secret, Some(acceptor()?)),
        _ => return Err("usage: s3-server FOLDER PORT KEY SECRET [tls]".into()),
    };
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let mut builder = S3ServiceBuilder::new(FileSystem::new(folder).map_err(|error| format!("{error:?}"))?);
    builder.set_auth(SimpleAuth::from_single(key, secret));
    let service = builder.build();
    let port: u16 = port.parse()?;
    Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        println!("{}", listener.local_addr()?);
        loop {
            let Ok((socket, _)) = listener.accept().await else { continue };
            let (service, tls) = (service.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => serve(socket, service).await,
                    Some(tls) => {
                        let Ok(socket) = tls.accept(socket).await else { return };
                        serve(socket, service).await;
                    }
                }
            });
        }
    })
}

async fn serve(socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, service: S3Service) {
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
}

/// TLS with a self-signed certificate.
fn acceptor() -> Result<TlsAcceptor> {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
