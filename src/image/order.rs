//! The order of the unix sockets in `files.img`, on which it depends whether criu restores them.
//!
//! - criu looks for the peer of a socket among the entries before it. Only the two of a pair may
//!   come in any order. A dump puts a client that waits to be accepted before its listener if it
//!   meets the client first.
//! - One process makes both sockets of a pair. It is the maker of the socket whose entry comes
//!   last, here the *leader*. The maker of a file is the process with the lowest pid that holds it.
//!   criu crashes if the process holds the other socket, too, and is not the maker of that one.
//!   Pids wrap around, so a child may have a lower pid than its parent.
//! - Descriptors that are on their way through a pair are numbers of the sender's maker. If the
//!   other socket leads, and has another maker, the receiver gets other files.
//! - criu crashes if that maker is not known when it reads of them: no process holds the sender,
//!   and the packet with the sender is read later.
//!
//! All of this is so in criu 3.17 to 4.2.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{ImageDir, fdinfo, frame};
use crate::{
    Error, Result,
    proto::images::{FdinfoEntry, FileEntry, SkPacketEntry},
};

const FILES: &str = "files.img";

impl ImageDir {
    /// Puts the unix sockets into an order that criu restores, as far as there is one.
    pub(crate) fn order_sockets(&self) -> Result<()> {
        let (sockets, places) = self.unix_sockets()?;
        let (order, _) = sockets.ordered();
        if order.iter().enumerate().all(|(place, socket)| place == *socket) {
            return Ok(());
        }
        let doing = || Error::io(format!("edit the image {FILES}"));
        let path = self.path().join(FILES);
        let old = std::fs::read(&path).map_err(doing())?;
        let moves = places.iter().zip(&order).map(|(place, socket)| (*place, places[*socket])).collect();
        std::fs::write(&path, frame::moved(&old, FILES, &moves)?).map_err(doing())
    }

    /// The problems that no order of the unix sockets cures.
    pub(super) fn sockets_beyond_restore(&self) -> Result<Vec<String>> {
        Ok(self.unix_sockets()?.0.ordered().1)
    }

    /// The unix sockets, and the places of their entries among all files.
    fn unix_sockets(&self) -> Result<(Sockets, Vec<usize>)> {
        let (mut sockets, mut places, mut place) = (Sockets::default(), Vec::new(), 0);
        self.each(FILES, |file: FileEntry| {
            if let Some(socket) = file.usk {
                sockets.add(file.id, socket.ino, socket.peer);
                places.push(place);
            }
            place += 1;
        })?;
        if !sockets.all.is_empty() {
            self.add_holders(&mut sockets)?;
            self.add_packets(&mut sockets)?;
        }
        Ok((sockets, places))
    }

    fn add_holders(&self, sockets: &mut Sockets) -> Result<()> {
        let mut tables = HashMap::new();
        for process in self.processes()? {
            let Some(table) = self.files_id(process.pid)? else { continue };
            tables.insert(process.pid, table);
            // A table that a process shares with its parent is the parent's to make.
            if tables.get(&process.ppid) != Some(&table) {
                self.each(&fdinfo(table), |descriptor: FdinfoEntry| {
                    sockets.add_holder(descriptor.id, process.pid);
                })?;
            }
        }
        Ok(())
    }

    /// The numbers of the files that are in flight.
    pub(super) fn in_flight(&self) -> Result<HashSet<u32>> {
        let mut found = HashSet::new();
        let Some(mut frames) = self.frames("sk-queues.img")? else { return Ok(found) };
        while let Some(packet) = frames.next_entry::<SkPacketEntry>()? {
            frames.raw(packet.length)?;
            found.extend(packet.scm.into_iter().flat_map(|scm| scm.rights));
        }
        Ok(found)
    }

    /// Adds which sockets have descriptors in their queues. criu gives those files to who makes the
    /// sender.
    fn add_packets(&self, sockets: &mut Sockets) -> Result<()> {
        let Some(mut frames) = self.frames("sk-queues.img")? else { return Ok(()) };
        while let Some(packet) = frames.next_entry::<SkPacketEntry>()? {
            frames.raw(packet.length)?;
            let rights: Vec<u32> = packet.scm.into_iter().flat_map(|scm| scm.rights).collect();
            if !rights.is_empty() {
                sockets.add_packet(packet.id_for, &rights);
            }
        }
        Ok(())
    }
}

/// The unix sockets of a tree, in the order of their entries.
#[derive(Debug, Default)]
struct Sockets {
    all: Vec<Socket>,
    /// By the number of the file.
    by_file: HashMap<u32, usize>,
    by_inode: HashMap<u32, usize>,
    /// The first problem of descriptors that are on their way: a chain of them has one at each
    /// link.
    unsent: Option<String>,
}

#[derive(Debug)]
struct Socket {
    inode: u32,
    /// The inode of the peer; 0 without a peer.
    peer: u32,
    /// The processes that criu gives it to.
    holders: BTreeSet<u32>,
    /// True if descriptors are in flight to it.
    receives: bool,
}

impl Socket {
    fn maker(&self) -> Option<u32> {
        self.holders.first().copied()
    }
}

impl Sockets {
    fn add(&mut self, file: u32, inode: u32, peer: u32) {
        self.by_file.insert(file, self.all.len());
        self.by_inode.insert(inode, self.all.len());
        self.all.push(Socket { inode, peer, holders: BTreeSet::new(), receives: false });
    }

    fn add_holder(&mut self, file: u32, pid: u32) {
        if let Some(socket) = self.by_file.get(&file) {
            self.all[*socket].holders.insert(pid);
        }
    }

    fn add_packet(&mut self, receiver: u32, files: &[u32]) {
        let Some(receiver) = self.by_file.get(&receiver).copied() else { return };
        self.all[receiver].receives = true;
        let sender = self.pair(receiver).or_else(|| self.first_client(receiver)).unwrap_or(receiver);
        let Some(maker) = self.all[sender].maker() else {
            let [receiver, sender] = [receiver, sender].map(|socket| self.all[socket].inode);
            self.unsent.get_or_insert_with(|| {
                format!(
                    "descriptors are on their way to the unix socket {receiver}, and no process has the socket {sender} that \
                     they were sent through: it is on its way, too"
                )
            });
            return;
        };
        files.iter().for_each(|file| self.add_holder(*file, maker));
    }

    /// The first that is connected to a socket, without a connection back.
    fn first_client(&self, server: usize) -> Option<usize> {
        let inode = self.all[server].inode;
        self.all.iter().position(|socket| socket.peer == inode)
    }

    fn peer(&self, socket: usize) -> Option<usize> {
        self.by_inode.get(&self.all[socket].peer).copied().filter(|peer| *peer != socket)
    }

    /// The peer, if the two are a pair.
    fn pair(&self, socket: usize) -> Option<usize> {
        self.peer(socket).filter(|peer| self.peer(*peer) == Some(socket))
    }

    /// An order in which criu restores them, and what it cannot restore in any.
    fn ordered(&self) -> (Vec<usize>, Vec<String>) {
        let (mut order, mut seen) = (Vec::new(), vec![false; self.all.len()]);
        let mut problems: Vec<_> = self.unsent.iter().cloned().collect();
        for first in 0..self.all.len() {
            let (mut waiting, mut next) = (Vec::new(), Some(first));
            while let Some(socket) = next.filter(|socket| !seen[*socket]) {
                seen[socket] = true;
                waiting.push(socket);
                next = self.peer(socket);
                problems.extend(self.refused(socket));
            }
            // Those of a pair are the last that wait.
            if let [.., one, other] = &mut waiting[..]
                && self.pair(*one) == Some(*other)
            {
                match self.leader(*one, *other) {
                    Ok(leader) if leader == *other => std::mem::swap(one, other),
                    Ok(_) => {}
                    Err(problem) => problems.push(problem),
                }
            }
            order.extend(waiting.into_iter().rev());
        }
        (order, problems)
    }

    /// The problem of a datagram socket whose peer has another peer by now. The kernel connects
    /// nothing to such a peer.
    fn refused(&self, socket: usize) -> Option<String> {
        let peer = self.peer(socket)?;
        self.pair(peer).filter(|other| *other != socket).map(|other| {
            let [one, peer, other] = [socket, peer, other].map(|socket| self.all[socket].inode);
            format!(
                "the unix socket {one} is connected to the unix socket {peer}, which is connected to the unix socket \
                 {other} by now"
            )
        })
    }

    /// The one of a pair that is to come last. The first one comes first in the images.
    fn leader(&self, one: usize, other: usize) -> Result<usize, String> {
        let (first, second) = (&self.all[one], &self.all[other]);
        let (Some(maker), Some(other_maker)) = (first.maker(), second.maker()) else { return Ok(other) };
        if maker == other_maker {
            return Ok(other);
        }
        let can_lead = |socket: &Socket, maker: u32, follower: &Socket| {
            !socket.receives && !follower.holders.contains(&maker)
        };
        let choices = [
            (maker, one, can_lead(first, maker, second)),
            (other_maker, other, can_lead(second, other_maker, first)),
        ];
        let possible = choices.into_iter().filter(|(.., possible)| *possible);
        possible.min().map(|(_, socket, _)| socket).ok_or_else(|| {
            format!(
                "descriptors are on their way through the pair of unix sockets {} and {}, which the processes {maker} and \
                 {other_maker} share in a way that criu cannot restore",
                first.inode, second.inode
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sockets by the number of the file, which is the inode, too; the peer, and the holders.
    fn sockets(all: &[(u32, u32, &[u32])]) -> Sockets {
        let mut sockets = Sockets::default();
        for (number, peer, holders) in all {
            sockets.add(*number, *number, *peer);
            holders.iter().for_each(|pid| sockets.add_holder(*number, *pid));
        }
        sockets
    }

    #[track_caller]
    fn assert_order(sockets: &Sockets, expected: &[u32]) {
        let (order, problems) = sockets.ordered();
        let numbers: Vec<u32> = order.iter().map(|socket| sockets.all[*socket].inode).collect();
        assert_eq!((numbers, problems), (expected.to_vec(), Vec::new()));
    }

    #[test]
    fn a_pair_in_any_order_is_led_by_the_lowest_holder() {
        const PARENT: u32 = 20;
        const CHILD: u32 = 10;
        for [first, second] in [[1, 2], [2, 1]] {
            assert_order(
                &sockets(&[(first, second, &[PARENT, CHILD]), (second, first, &[PARENT])]),
                &[second, first],
            );
            assert_order(
                &sockets(&[(first, second, &[PARENT]), (second, first, &[PARENT, CHILD])]),
                &[first, second],
            );
            assert_order(
                &sockets(&[(first, second, &[PARENT]), (second, first, &[CHILD])]),
                &[first, second],
            );
            assert_order(
                &sockets(&[(first, second, &[CHILD]), (second, first, &[PARENT])]),
                &[second, first],
            );
            assert_order(
                &sockets(&[(first, second, &[CHILD]), (second, first, &[PARENT, CHILD])]),
                &[first, second],
            );
        }
    }

    #[test]
    fn what_is_fine_stays_as_it_was() {
        let fine: &[(u32, u32, &[u32])] = &[
            (1, 0, &[1]),
            (2, 3, &[1]),
            (3, 2, &[1]),
            (4, 4, &[1]),
            (5, 1, &[2]),
            (7, 6, &[3]),
            (8, 77, &[1]),
        ];
        assert_order(&sockets(fine), &[1, 2, 3, 4, 5, 7, 8]);
        assert_order(&sockets(&[]), &[]);
    }

    #[test]
    fn a_peer_comes_first() {
        let clients: &[(u32, u32, &[u32])] = &[(1, 3, &[1]), (2, 3, &[1]), (3, 0, &[1])];
        assert_order(&sockets(clients), &[3, 1, 2]);
        let chain: &[(u32, u32, &[u32])] = &[(1, 2, &[9]), (2, 3, &[1]), (3, 0, &[2]), (4, 1, &[1])];
        assert_order(&sockets(chain), &[3, 2, 1, 4]);
        let (order, problems) = sockets(&[(1, 2, &[9]), (2, 3, &[1]), (3, 2, &[2])]).ordered();
        assert_eq!(order, [2, 1, 0]);
        assert!(problems[0].contains("socket 1 is connected to the unix socket 2"), "{problems:?}");
        // Each is connected to the next, and the last one to the first.
        assert_eq!(sockets(&[(1, 2, &[1]), (2, 3, &[1]), (3, 1, &[1])]).ordered().0.len(), 3);
    }

    #[test]
    fn the_sender_of_descriptors_leads() {
        let pair: &[(u32, u32, &[u32])] = &[(1, 2, &[10]), (2, 1, &[20]), (3, 0, &[20])];
        let mut to_second = sockets(pair);
        to_second.add_packet(2, &[99]);
        assert_order(&to_second, &[2, 1, 3]);
        let mut to_first = sockets(pair);
        to_first.add_packet(1, &[3]);
        assert_order(&to_first, &[1, 2, 3]);
        // The maker of the sender has the file, too.
        assert_eq!(to_first.all[2].holders, [20].into());
        to_first.add_packet(2, &[3]);
        assert_eq!(to_first.all[2].holders, [10, 20].into());
        assert_eq!(to_first.ordered().1.len(), 1);
    }

    #[test]
    fn a_sender_cannot_lead_where_its_maker_has_the_receiver_of_another() {
        let mut pair = sockets(&[(1, 2, &[10, 20]), (2, 1, &[20])]);
        assert_order(&pair, &[2, 1]);
        pair.add_packet(1, &[9]);
        let (_, problems) = pair.ordered();
        assert!(problems[0].contains("the processes 10 and 20"), "{problems:?}");
    }

    #[test]
    fn a_socket_that_is_on_its_way_alone_is_of_the_sender() {
        let mut all = sockets(&[(1, 2, &[]), (2, 1, &[30]), (3, 4, &[10]), (4, 3, &[20])]);
        all.add_packet(4, &[1]);
        assert_eq!(all.all[0].holders, [10].into());
        assert_order(&all, &[2, 1, 4, 3]);
    }

    #[test]
    fn a_sender_that_is_on_its_way_must_be_known_before_what_it_sent() {
        let pairs = || sockets(&[(1, 2, &[]), (2, 1, &[]), (3, 4, &[10]), (4, 3, &[10])]);
        let mut known = pairs();
        known.add_packet(4, &[1, 2]);
        known.add_packet(2, &[9]);
        assert_eq!(known.ordered().1, [""; 0]);
        let mut unknown = pairs();
        unknown.add_packet(2, &[9]);
        unknown.add_packet(4, &[1, 2]);
        let problems = unknown.ordered().1;
        assert!(
            matches!(&problems[..], [one] if one.contains("socket 1 that they were sent through")),
            "{problems:?}"
        );
    }
}
