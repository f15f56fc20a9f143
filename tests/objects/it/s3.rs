//! [`Server`]: an S3-compatible server in a process of its own. It keeps its port when it is
//! restarted.
//!
//! It is `server.rs` of this package.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use criu_rpc::{ObjectBlobStore, Result, store::StoreOptions};

const KEY: &str = "access-key-of-the-tests";
const SECRET: &str = "secret-key-of-the-tests";

pub(crate) struct Server {
    folder: Folder,
    protocol: &'static str,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// Starts a server with an empty bucket.
    pub(crate) fn start() -> Server {
        Server::with("http")
    }

    /// Starts a server with an empty bucket and a self-signed certificate that clients do not
    /// trust.
    pub(crate) fn start_with_tls() -> Server {
        Server::with("https")
    }

    fn with(protocol: &'static str) -> Server {
        let folder = Folder::new();
        fs::create_dir(folder.0.join("bucket")).unwrap();
        let mut server = Server { folder, protocol, port: 0, child: None };
        server.restart();
        server
    }

    /// Restarts it on the same port with the same data.
    pub(crate) fn restart(&mut self) {
        self.kill();
        for _ in 0..50 {
            let mut child = Command::new(env!("CARGO_BIN_EXE_s3-server"))
                .arg(&self.folder.0)
                .args([&self.port.to_string(), KEY, SECRET])
                .args((self.protocol == "https").then_some("tls"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            if let Some((_, port)) = line.trim().rsplit_once(':') {
                self.port = port.parse().unwrap();
                self.child = Some(child);
                return;
            }
            // The port of the previous server is not free yet.
            let _ = child.wait();
            thread::sleep(Duration::from_millis(100));
        }
        panic!("the server does not start");
    }

    /// Kills it at any point of its work.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn open(&self, prefix: &str) -> ObjectBlobStore {
        self.try_open(prefix, &[]).unwrap()
    }

    pub(crate) fn try_open(&self, prefix: &str, more: &[(&str, &str)]) -> Result<ObjectBlobStore> {
        open_at(&self.endpoint(), prefix, more)
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.protocol, self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the folder with the objects of a prefix.
    pub(crate) fn files(&self, prefix: &str) -> PathBuf {
        self.folder.0.join("bucket").join(prefix)
    }

    /// Returns the number of parts of multipart uploads that have not ended.
    pub(crate) fn unfinished(&self) -> usize {
        let parts = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(".upload");
        files_below(&self.folder.0).iter().filter(|path| parts(path)).count()
    }
}

/// Opens the store at a prefix of the server at this address.
pub(crate) fn open_at(endpoint: &str, prefix: &str, more: &[(&str, &str)]) -> Result<ObjectBlobStore> {
    open_with(&StoreOptions::new(), endpoint, prefix, more)
}

pub(crate) fn open_with(
    store: &StoreOptions,
    endpoint: &str,
    prefix: &str,
    more: &[(&str, &str)],
) -> Result<ObjectBlobStore> {
    let options = [
        ("endpoint", endpoint),
        ("access_key_id", KEY),
        ("secret_access_key", SECRET),
        ("region", "us-east-1"),
        ("allow_http", "true"),
    ];
    store.open_url_with(&format!("s3://bucket/{prefix}"), options.iter().chain(more).copied())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns all files below a folder, sorted.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_below(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files.sort();
    files
}

/// A folder that is removed after the test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("criu-rpc-object-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
