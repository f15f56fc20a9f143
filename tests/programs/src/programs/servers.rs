//! Servers, with clients in their trees or outside.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use super::Program;
use crate::{
    failure::{Failure, Result},
    stage::Stage,
    talk::{Kind, PATIENCE},
};

pub(super) const PROGRAMS: &[Program] = &[
    Program::new("node server with workers", &["node"], node),
    Program::new("java with threads", &["java", "javac"], java),
    Program::new("sqlite3, transaction", &["sqlite3"], sqlite_transaction),
    Program::new("sqlite3, WAL", &["sqlite3"], sqlite_wal),
    Program::new("redis and client", &["redis-server", "redis-cli"], redis),
    Program::new("nginx", &["nginx"], nginx),
    Program::new("php server", &["php"], php),
    Program::new("go server", &["go"], go),
    Program::new("ssh-agent", &["ssh-agent", "ssh-add", "ssh-keygen"], ssh_agent),
];

/// A port of the loopback that is free at this time.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The body of the answer to a GET, over a connection that is closed afterwards.
pub(super) fn get(port: u16, path: &str) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut connection = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(connection) => break connection,
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    connection.set_read_timeout(Some(PATIENCE))?;
    // The request goes out in one piece, because PHP's server sometimes rejects one that arrives in
    // several.
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes())?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(Failure::wrong(format!("GET {path} was answered with {answer:?}"))),
    }
}

/// Fails unless the body of the answer has this text.
pub(super) fn assert_answers(port: u16, path: &str, wanted: &str) -> Result {
    let body = get(port, path)?;
    if body.contains(wanted) {
        return Ok(());
    }
    Err(Failure::wrong(format!("GET {path}: expected {wanted:?}, found {body:?}")))
}

/// An HTTP server with two threads of workers and a forked process, each of which counts.
fn node(stage: &mut Stage) -> Result {
    stage.place.write(
        "server.js",
        r#"
const { Worker } = require("worker_threads");
const { fork } = require("child_process");
const http = require("http");
const secret = Math.floor(Math.random() * 2 ** 40);
const workers = [new Worker("./worker.js"), new Worker("./worker.js"), fork("./forked.js")];
const waiting = workers.map(() => []);
workers.forEach((worker, number) => worker.on("message", (count) => waiting[number].shift()(count)));
const ask = (number) => new Promise((resolve) => {
    waiting[number].push(resolve);
    (workers[number].send ?? workers[number].postMessage).call(workers[number], "count");
});
const server = http.createServer(async (request, response) => {
    const counts = await Promise.all([ask(0), ask(1), ask(2)]);
    response.end(`secret ${secret} counts ${counts.join(" ")}.`);
});
server.listen(0, "127.0.0.1", () => console.log(`port ${server.address().port}`));
process.stdin.on("data", (data) => console.log(`heard ${data.toString().trim()} with ${secret}`));
"#,
    )?;
    stage.place.write(
        "worker.js",
        "const { parentPort } = require('worker_threads'); let count = 0; parentPort.on('message', () => parentPort.postMessage(++count));",
    )?;
    stage.place.write("forked.js", "let count = 100; process.on('message', () => process.send(++count));")?;
    stage.start(Kind::Pipes, &["node", "server.js"])?;
    let port = port_of(stage.expect_number("port ")?)?;
    assert_answers(port, "/", "counts 1 1 101.")?;
    let body = get(port, "/")?;
    let secret = body.split(' ').nth(1).unwrap_or_default().to_owned();
    stage.moment(|now| {
        assert_answers(port, "/", &format!("secret {secret} counts 3 3 103."))?;
        now.ask("hello", &format!("heard hello with {secret}\n"))?;
        assert_answers(port, "/", "counts 4 4 104.")
    })
}

fn port_of(number: u64) -> Result<u16> {
    u16::try_from(number).map_err(|_| Failure::wrong(format!("{number} is not a port")))
}

/// A virtual machine with threads that count, some of which wait for each other.
fn java(stage: &mut Stage) -> Result {
    stage.place.write(
        "Threads.java",
        r#"
import java.util.*; import java.util.concurrent.*; import java.util.concurrent.atomic.*;
public class Threads {
    public static void main(String[] arguments) throws Exception {
        long secret = new Random().nextLong() >>> 8;
        AtomicLong[] counts = new AtomicLong[4];
        for (int i = 0; i < 4; i++) {
            AtomicLong count = counts[i] = new AtomicLong();
            Thread thread = new Thread(() -> { try { while (true) { count.incrementAndGet(); Thread.sleep(1); } } catch (InterruptedException e) {} });
            thread.setDaemon(true);
            thread.start();
        }
        ExecutorService pool = Executors.newFixedThreadPool(3);
        List<Integer> kept = new ArrayList<>();
        for (int i = 0; i < 100000; i++) kept.add(i);
        System.out.println("secret " + secret);
        Scanner scanner = new Scanner(System.in);
        while (scanner.hasNextLine()) {
            String line = scanner.nextLine();
            long before = 0, after = 0, sum = 0;
            for (AtomicLong count : counts) before += count.get();
            List<Future<Long>> parts = new ArrayList<>();
            for (int part = 0; part < 3; part++) {
                int from = part;
                parts.add(pool.submit(() -> { long s = 0; for (int i = from; i < kept.size(); i += 3) s += kept.get(i); return s; }));
            }
            for (Future<Long> part : parts) sum += part.get();
            System.gc();
            for (int tries = 0; after <= before && tries < 1000; tries++) {
                Thread.sleep(5); after = 0;
                for (AtomicLong count : counts) after += count.get();
            }
            System.out.println(line + " " + secret + " sum " + sum + (after > before ? " counting" : " stuck"));
        }
        pool.shutdown();
        System.out.println("bye");
    }
}
"#,
    )?;
    stage.run(&["javac", "Threads.java"])?;
    stage.start(Kind::Pipes, &["java", "-Xmx128m", "Threads"])?;
    let secret = stage.expect_number("secret ")?;
    stage.ask("first", "counting\n")?;
    stage.moment(|now| now.ask("second", &format!("second {secret} sum 4999950000 counting\n")))
}

/// A transaction that is not committed yet: the journal and the locks are held.
fn sqlite_transaction(stage: &mut Stage) -> Result {
    sqlite(stage, "delete")
}

/// The same with a write-ahead log and shared memory beside it.
fn sqlite_wal(stage: &mut Stage) -> Result {
    sqlite(stage, "wal")
}

fn sqlite(stage: &mut Stage, journal: &str) -> Result {
    stage.start(Kind::Pipes, &["sqlite3", "-batch", "data.db"])?;
    stage.ask(&format!("PRAGMA journal_mode={journal};"), &format!("{journal}\n"))?;
    stage.line("CREATE TABLE numbers(n INTEGER); INSERT INTO numbers VALUES (1), (2);")?;
    stage.line("CREATE TEMP TABLE own(n INTEGER); INSERT INTO own VALUES (5);")?;
    stage.line(
        "BEGIN IMMEDIATE; INSERT INTO numbers SELECT abs(random()) % 1000000 FROM generate_series(1, 500);",
    )?;
    stage.line("SELECT 'sum', sum(n) FROM numbers;")?;
    let sum = stage.expect_number("sum|")?;
    stage.moment(|now| {
        now.ask(
            "INSERT INTO numbers SELECT n FROM own; SELECT 'sum', sum(n) FROM numbers;",
            &format!("sum|{}\n", sum + 5),
        )?;
        // Another connection does not see it, and cannot write.
        let other = now.run(&["sqlite3", "data.db", "SELECT sum(n) FROM numbers;"])?;
        now.assert_has(&other, "3\n")?;
        let refused = now.run(&["sqlite3", "data.db", "INSERT INTO numbers VALUES (7);"]);
        if refused.is_ok() {
            return Err(Failure::wrong("another connection could write during the transaction"));
        }
        now.ask("COMMIT; SELECT 'done';", "done\n")?;
        let other =
            now.run(&["sqlite3", "data.db", "SELECT sum(n) FROM numbers; PRAGMA integrity_check;"])?;
        now.assert_has(&other, &format!("{}\nok\n", sum + 5))?;
        now.line(".quit")?;
        now.ends_well()
    })
}

/// A shell's background server, and a client in the middle of a transaction that the server keeps.
fn redis(stage: &mut Stage) -> Result {
    let port = free_port()?.to_string();
    stage.place.write(
        "start.sh",
        r#"redis-server --port "$1" --bind 127.0.0.1 --save '' --appendonly no >redis.log 2>&1 &
until redis-cli -p "$1" ping >/dev/null 2>&1; do sleep 0.05; done
redis-cli -p "$1"
echo "client ended with $?"
kill $!
wait
"#,
    )?;
    stage.start(Kind::Pipes, &["bash", "start.sh", &port])?;
    stage.ask("SET key kept", "OK\n")?;
    stage.ask("CLIENT SETNAME first", "OK\n")?;
    stage.ask("MULTI", "OK\n")?;
    stage.ask("INCRBY count 41", "QUEUED\n")?;
    stage.moment(|now| {
        now.ask("INCR count", "QUEUED\n")?;
        now.ask("EXEC", "41\n42\n")?;
        now.ask("GET key", "kept\n")?;
        now.ask("CLIENT GETNAME", "first\n")?;
        let other = now.run(&["redis-cli", "-p", &port, "GET", "count"])?;
        now.assert_has(&other, "42\n")
    })
}

/// A master and two workers, with a counter in shared memory.
fn nginx(stage: &mut Stage) -> Result {
    let port = free_port()?;
    let folder = stage.place.work();
    stage.place.write(
        "nginx.conf",
        format!(
            "daemon off; worker_processes 2; pid nginx.pid; error_log stderr; user root;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log {folder}/access.log; client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2;\n\
             fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;\n\
             server {{ listen 127.0.0.1:{port}; root {folder}/html; location /status {{ stub_status; }} }} }}\n",
            folder = folder.display()
        ),
    )?;
    stage.place.write("html/index.html", "the page\n")?;
    let prefix = folder.display().to_string();
    stage.start(Kind::Pipes, &["nginx", "-p", &prefix, "-c", "nginx.conf"])?;
    for _ in 0..5 {
        assert_answers(port, "/", "the page\n")?;
    }
    assert_answers(port, "/status", " 6 6 6 \n")?;
    stage.moment(|now| {
        assert_answers(port, "/", "the page\n")?;
        assert_answers(port, "/status", " 8 8 8 \n")?;
        now.run(&["nginx", "-p", &prefix, "-c", "nginx.conf", "-s", "reload"])?;
        assert_answers(port, "/", "the page\n")?;
        now.run(&["nginx", "-p", &prefix, "-c", "nginx.conf", "-s", "quit"])?;
        now.ends_well()
    })
}

/// A server that waits by `select`. The script counts in a file, because its memory ends with the
/// request.
fn php(stage: &mut Stage) -> Result {
    let port = free_port()?;
    stage.place.write("count", "0")?;
    stage.place.write(
        "index.php",
        "<?php $count = 1 + (int) file_get_contents('count'); file_put_contents('count', $count); \
         echo getmypid(), \" counts $count.\";",
    )?;
    let folder = stage.place.work().display().to_string();
    let address = format!("127.0.0.1:{port}");
    stage.start(Kind::Pipes, &["php", "-S", &address, "-t", &folder])?;
    assert_answers(port, "/", " counts 1.")?;
    let body = get(port, "/")?;
    let pid = body.split(' ').next().unwrap_or_default().to_owned();
    stage.moment(|_| {
        assert_answers(port, "/", &format!("{pid} counts 3."))?;
        assert_answers(port, "/", &format!("{pid} counts 4."))
    })
}

/// A server with goroutines that count and wait.
fn go(stage: &mut Stage) -> Result {
    stage.place.write("go.mod", "module server\n")?;
    stage.place.write(
        "main.go",
        r#"package main

import (
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

func main() {
	rand.Seed(time.Now().UnixNano())
	secret := rand.Int63()
	var requests, ticks int64
	for i := 0; i < 50; i++ {
		go func() {
			for range time.Tick(time.Millisecond) {
				atomic.AddInt64(&ticks, 1)
			}
		}()
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		before := atomic.LoadInt64(&ticks)
		time.Sleep(20 * time.Millisecond)
		for try := 0; atomic.LoadInt64(&ticks) == before && try < 100; try++ {
			time.Sleep(20 * time.Millisecond)
		}
		fmt.Fprintf(w, "secret %d request %d ticking %v.", secret, atomic.AddInt64(&requests, 1), atomic.LoadInt64(&ticks) > before)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println("port", listener.Addr().(*net.TCPAddr).Port)
	fmt.Fprintln(os.Stderr, http.Serve(listener, nil))
}
"#,
    )?;
    stage.run(&[
        "env",
        "GOFLAGS=-mod=mod",
        "GOPROXY=off",
        "GOTOOLCHAIN=local",
        &go_cache()?,
        "go",
        "build",
        "-o",
        "server",
    ])?;
    stage.start(Kind::Pipes, &["./server"])?;
    let port = port_of(stage.expect_number("port ")?)?;
    let body = get(port, "/")?;
    let secret = body.split(' ').nth(1).unwrap_or_default().to_owned();
    stage.moment(|_| {
        assert_answers(port, "/", &format!("secret {secret} request 2 ticking true."))?;
        assert_answers(port, "/", "request 3 ticking true.")
    })
}

/// The folder of Go's compiled standard library: beside this program, so that it is compiled once.
fn go_cache() -> Result<String> {
    let own = std::env::current_exe()?;
    let folder = own.parent().unwrap_or(&own).join("go-cache");
    Ok(format!("GOCACHE={}", folder.display()))
}

/// The daemon, with a key that is only in its memory.
fn ssh_agent(stage: &mut Stage) -> Result {
    stage.place.write("message", "to be signed\n")?;
    stage.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key"])?;
    let public = stage.place.read("key.pub")?;
    stage.start(Kind::Pipes, &["ssh-agent", "-a", "socket"])?;
    let pid = stage.expect_line("SSH_AGENT_PID=")?;
    let pid = pid.split(';').next().unwrap_or_default().parse();
    stage.ends_well()?;
    stage.daemon(pid.map_err(|_| Failure::wrong("ssh-agent told no pid"))?)?;
    let socket = format!("SSH_AUTH_SOCK={}", stage.place.path("socket").display());
    stage.run(&["env", &socket, "ssh-add", "-q", "key"])?;
    stage.run(&["rm", "key"])?;
    stage.moment(|now| {
        let keys = now.run(&["env", &socket, "ssh-add", "-L"])?;
        now.assert_has(&keys, public.trim_end())?;
        now.run(&["env", &socket, "ssh-add", "-T", "key.pub"])?; // signs, and verifies
        now.run(&["env", &socket, "ssh-add", "-q", "-D"])?;
        Ok(())
    })
}
