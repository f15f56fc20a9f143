//! The server or the uploading process is killed at any moment.

use std::{
    env, fs,
    io::{Read, Write},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use criu_rpc::{BlobStore, BlobStoreExt, Digest256, Error, ObjectBlobStore, store::BlobBatch};

use crate::{
    noise,
    s3::{Server, files_below},
};

#[test]
fn an_upload_goes_on_when_the_server_is_back() {
    let mut server = Server::start();
    let store = server.open("p");
    let bytes = noise(100 * 1024 * 1024, 1);
    let mut writer = store.writer().unwrap();
    writer.write_all(&bytes[..50 * 1024 * 1024]).unwrap();
    server.kill();
    let back = back_after(server, Duration::from_millis(700));
    writer.write_all(&bytes[50 * 1024 * 1024..]).unwrap();
    writer.commit(&Digest256::of(&bytes)).unwrap();
    let server = back.join().unwrap();
    assert!(server.open("p").get(&Digest256::of(&bytes)).unwrap() == bytes);
    assert_eq!(files_below(&server.files("p")).len(), 1);
}

#[test]
fn an_upload_whose_server_stays_away_fails_and_leaves_nothing_to_see() {
    let mut server = Server::start();
    let store = server.try_open("p", &[("patience", "2")]).unwrap();
    let bytes = noise(100 * 1024 * 1024, 2);
    let digest = Digest256::of(&bytes);
    let mut writer = store.writer().unwrap();
    writer.write_all(&bytes[..50 * 1024 * 1024]).unwrap();
    server.kill();
    let start = Instant::now();
    let written = writer.write_all(&bytes[50 * 1024 * 1024..]);
    let said = match written {
        Ok(()) => writer.commit(&digest).unwrap_err().to_string(),
        Err(error) => {
            drop(writer);
            error.to_string()
        }
    };
    assert!(said.contains("s3://bucket/p") && start.elapsed() < Duration::from_secs(30), "{said}");
    assert!(matches!(store.get(&digest), Err(Error::Store { .. })));

    server.restart();
    let store = server.open("p");
    assert!(!store.contains(&digest).unwrap());
    assert_eq!(files_below(&server.files("p")).len(), 0);
    assert_eq!(store.put(&bytes).unwrap(), digest);
    assert!(store.get(&digest).unwrap() == bytes);
}

#[test]
fn a_download_goes_on_when_the_server_is_back() {
    let mut server = Server::start();
    let store = server.open("p");
    let bytes = noise(70 * 1024 * 1024, 3);
    let digest = store.put(&bytes).unwrap();
    let mut reader = store.reader(&digest).unwrap();
    let mut read = vec![0; 1_000_000];
    reader.read_exact(&mut read).unwrap();
    server.kill();
    let back = back_after(server, Duration::from_millis(700));
    reader.read_to_end(&mut read).unwrap();
    assert!(read == bytes);

    // Killed in the middle of an answer, at any time.
    let mut server = back.join().unwrap();
    for pause in [5, 40, 120] {
        thread::scope(|scope| {
            let got = scope.spawn(|| store.get(&digest).unwrap());
            thread::sleep(Duration::from_millis(pause));
            server.restart();
            assert!(got.join().unwrap() == bytes);
        });
    }
}

#[test]
fn a_batch_goes_on_when_the_server_is_back() {
    let mut server = Server::start();
    let store = server.open("p");
    let (blobs, digests) = small(30_000, 4);
    let batch = store.batch().unwrap();
    put(&*batch, &blobs[..20_000], &digests[..20_000]).unwrap();
    server.kill();
    let back = back_after(server, Duration::from_millis(700));
    put(&*batch, &blobs[20_000..], &digests[20_000..]).unwrap();
    batch.commit().unwrap();
    let mut server = back.join().unwrap();
    let other = server.open("p");
    assert_eq!(other.missing(&digests).unwrap(), []);
    let came = Mutex::new(0);
    thread::scope(|scope| {
        let restarts = scope.spawn(|| {
            thread::sleep(Duration::from_millis(30));
            server.restart();
        });
        let mut each = |place: usize, bytes: &[u8]| {
            assert!(bytes == blobs[place]);
            *came.lock().unwrap() += 1;
            Ok(())
        };
        other.get_many(&digests, &mut each).unwrap();
        restarts.join().unwrap();
    });
    assert_eq!(*came.lock().unwrap(), blobs.len());
}

#[test]
fn a_batch_whose_server_stays_away_fails_and_a_later_one_succeeds() {
    let mut server = Server::start();
    let store = server.try_open("p", &[("patience", "2")]).unwrap();
    let (blobs, digests) = small(30_000, 5);
    let batch = store.batch().unwrap();
    put(&*batch, &blobs[..25_000], &digests[..25_000]).unwrap();
    server.kill();
    let rest = put(&*batch, &blobs[25_000..], &digests[25_000..]);
    let committed = batch.commit();
    assert!(matches!(committed, Err(Error::Store { .. })), "{rest:?} {committed:?}");

    server.restart();
    let store = server.open("p");
    assert!(store.missing(&digests).unwrap().len() >= 5000);
    whole_or_missing(&store, &blobs, &digests);
    let batch = store.batch().unwrap();
    put(&*batch, &blobs, &digests).unwrap();
    batch.commit().unwrap();
    assert_eq!(server.open("p").missing(&digests).unwrap(), []);
    assert_eq!(whole_or_missing(&server.open("p"), &blobs, &digests), blobs.len());
}

#[test]
fn whoever_uploads_may_be_killed_at_any_moment() {
    const CHILD: &str = "CRIU_RPC_OBJECT_UPLOADER";
    if let Some(endpoint) = env::var_os(CHILD) {
        upload_until_killed(endpoint.to_str().unwrap());
    }
    let server = Server::start();
    let endpoint = server.endpoint();
    let mut packed = 0;
    for pause in [300, 700, 1100, 1500, 2000] {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "killed::whoever_uploads_may_be_killed_at_any_moment", "--nocapture"])
            .env(CHILD, &endpoint)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(pause));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = server.open("p");
        let (blobs, digests) = small(30_000, 6);
        packed = whole_or_missing(&store, &blobs, &digests);
        let large = noise(60 * 1024 * 1024, 7);
        match store.get(&Digest256::of(&large)) {
            Ok(bytes) => assert!(bytes == large),
            Err(error) => assert!(matches!(error, Error::Missing { .. }), "{error:?}"),
        }
    }
    let (blobs, digests) = small(30_000, 6);
    let store = server.open("p");
    let batch = store.batch().unwrap();
    put(&*batch, &blobs, &digests).unwrap();
    batch.commit().unwrap();
    assert_eq!(whole_or_missing(&server.open("p"), &blobs, &digests), blobs.len());
    eprintln!("{packed} of {} were there before", blobs.len());
}

fn upload_until_killed(endpoint: &str) -> ! {
    let store = crate::s3::open_at(endpoint, "p", &[]).unwrap();
    let (blobs, digests) = small(30_000, 6);
    let large = noise(60 * 1024 * 1024, 7);
    loop {
        let batch = store.batch().unwrap();
        put(&*batch, &blobs, &digests).unwrap();
        batch.commit().unwrap();
        let mut writer = store.writer().unwrap();
        writer.write_all(&large).unwrap();
        writer.commit(&Digest256::of(&large)).unwrap();
    }
}

/// Returns the number of blobs present, and checks that each is complete.
fn whole_or_missing(store: &ObjectBlobStore, blobs: &[Vec<u8>], digests: &[Digest256]) -> usize {
    let missing = store.missing(digests).unwrap();
    let missing: std::collections::HashSet<_> = missing.into_iter().collect();
    let there: Vec<usize> = (0..blobs.len()).filter(|place| !missing.contains(&digests[*place])).collect();
    let asked: Vec<Digest256> = there.iter().map(|place| digests[*place]).collect();
    let mut came = 0;
    store
        .get_many(&asked, &mut |place, bytes| {
            assert!(bytes == blobs[there[place]]);
            came += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(came, there.len());
    came
}

fn back_after(mut server: Server, pause: Duration) -> thread::JoinHandle<Server> {
    thread::spawn(move || {
        thread::sleep(pause);
        server.restart();
        server
    })
}

/// Returns blobs of 4 KiB each, and their digests.
fn small(count: usize, seed: u64) -> (Vec<Vec<u8>>, Vec<Digest256>) {
    let all = noise(count * 4096, seed);
    let blobs: Vec<Vec<u8>> = all.chunks(4096).map(<[u8]>::to_vec).collect();
    let digests = blobs.iter().map(|blob| Digest256::of(blob)).collect();
    (blobs, digests)
}

fn put(batch: &dyn BlobBatch, blobs: &[Vec<u8>], digests: &[Digest256]) -> criu_rpc::Result<()> {
    for (blobs, digests) in blobs.chunks(64).zip(digests.chunks(64)) {
        let some: Vec<(Digest256, &[u8])> =
            digests.iter().copied().zip(blobs.iter().map(Vec::as_slice)).collect();
        batch.put(&some)?;
    }
    Ok(())
}

#[test]
fn nothing_that_was_killed_stays_for_long() {
    let server = Server::start();
    let tmp = server.files("p/tmp");
    fs::create_dir_all(&tmp).unwrap();
    let day = Duration::from_secs(24 * 3600);
    for (name, age) in [("old", day * 2), ("young", day / 2)] {
        let file = fs::File::create(tmp.join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    }
    let store = server.open("p");
    let bytes = noise(20 * 1024 * 1024, 8);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut writer = store.writer().unwrap();
    writer.write_all(&bytes).unwrap();
    writer.commit(&Digest256::of(&bytes)).unwrap();
    while tmp.join("old").exists() {
        assert!(Instant::now() < deadline, "the leftover is still there");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(tmp.join("young").exists());
}
