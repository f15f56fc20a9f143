//! `s3-server FOLDER PORT KEY SECRET`: serves the folders in FOLDER as buckets on 127.0.0.1. Port 0 is any that is free; which
//! one it is, is the one line on standard output. It ends with its standard input.

use std::{env, error::Error, io::Read as _};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder, port, key, secret] = arguments.as_slice() else {
        return Err("usage: s3-server FOLDER PORT KEY SECRET".into());
    };
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let mut builder = S3ServiceBuilder::new(FileSystem::new(folder).map_err(|error| format!("{error:?}"))?);
    builder.set_auth(SimpleAuth::from_single(key.clone(), secret.as_str()));
    let service = builder.build();
    let listener = TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
    println!("{}", listener.local_addr()?);
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let service = service.clone();
        tokio::spawn(async move {
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
        });
    }
}
