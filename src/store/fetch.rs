//! Reads many blobs and verifies them: [`fetch`], [`fetch_into`].

use std::ops::Range;

use super::BlobStore;
use crate::{Digest256, Error, Result, wiped::Wiped};

/// Reads and verifies many blobs: `each` gets the index of a digest, and its bytes. A damaged or
/// missing blob is read once more by itself, because the store may have another copy.
pub(crate) fn fetch(
    store: &(impl BlobStore + ?Sized),
    digests: &[Digest256],
    each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut came = vec![false; digests.len()];
    // A store may ignore an error of `each`. Then the blob must not count as taken.
    let mut refusal = None;
    let given = store.get_many(digests, &mut |place, bytes| {
        let digest = digests
            .get(place)
            .ok_or_else(|| Error::store("find blobs", "it returned more blobs than requested"))?;
        if refusal.is_some() {
            return Err(Error::store("find blobs", "it goes on after an error"));
        }
        if Digest256::of(bytes) == *digest && !std::mem::replace(&mut came[place], true) {
            refusal = each(place, bytes).err();
        }
        match &refusal {
            Some(_) => Err(Error::store("find blobs", "one was refused")),
            None => Ok(()),
        }
    });
    match refusal {
        Some(refusal) => return Err(refusal),
        None => given?,
    }
    for (place, digest) in digests.iter().enumerate().filter(|(place, _)| !came[*place]) {
        each(place, &Wiped::from(get_verified(store, digest)?))?;
    }
    Ok(())
}

fn get_verified(store: &(impl BlobStore + ?Sized), digest: &Digest256) -> Result<Vec<u8>> {
    let bytes = store.get(digest)?;
    verify(digest, &bytes, || format!("blob {digest}"))?;
    Ok(bytes)
}

/// Reads and verifies many blobs into the buffers of `into`, which have their lengths. A damaged or
/// missing blob is read once more by itself.
pub(crate) fn fetch_into(
    store: &(impl BlobStore + ?Sized),
    digests: &[Digest256],
    places: &[Range<usize>],
    into: &mut [u8],
) -> Result<()> {
    assert_eq!(digests.len(), places.len(), "each blob has a place");
    store.get_many(digests, &mut |place, bytes| {
        let place = places
            .get(place)
            .ok_or_else(|| Error::store("find blobs", "it returned more blobs than requested"))?;
        if place.len() == bytes.len() {
            into[place.clone()].copy_from_slice(bytes);
        }
        Ok(())
    })?;
    let found: Vec<_> = places.iter().map(|place| &into[place.clone()]).collect();
    let found = Digest256::of_each(&found);
    for ((digest, place), found) in digests.iter().zip(places).zip(found) {
        if found == *digest {
            continue;
        }
        let again = Wiped::from(get_verified(store, digest)?);
        if again.len() != place.len() {
            let problem = format!("it has {} bytes where {} are wanted", again.len(), place.len());
            return Err(Error::corrupt(format!("the chunk {digest}"), problem));
        }
        into[place.clone()].copy_from_slice(&again);
    }
    Ok(())
}

/// Compares the digest of a store's bytes with the expected one.
pub(super) fn verify(digest: &Digest256, bytes: &[u8], what: impl FnOnce() -> String) -> Result<()> {
    let found = Digest256::of(bytes);
    if found != *digest {
        return Err(Error::corrupt(what(), format!("its {} bytes have the digest {found}", bytes.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemBlobStore;

    /// Hands many blobs on.
    type Many = fn(&MemBlobStore, &[Digest256], &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()>;

    /// A store with its own way to return many blobs.
    #[derive(Debug)]
    struct Odd(MemBlobStore, Many);

    impl BlobStore for Odd {
        fn put(&self, bytes: &[u8]) -> Result<Digest256> {
            self.0.put(bytes)
        }

        fn get(&self, digest: &Digest256) -> Result<Vec<u8>> {
            self.0.get(digest)
        }

        fn contains(&self, digest: &Digest256) -> Result<bool> {
            self.0.contains(digest)
        }

        fn get_many(
            &self,
            digests: &[Digest256],
            each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
        ) -> Result<()> {
            self.1(&self.0, digests, each)
        }
    }

    /// Returns blobs wrongly, each in a different way, and one correctly.
    fn carelessly(
        store: &MemBlobStore,
        digests: &[Digest256],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        each(0, &store.get(&digests[0])?)?;
        each(0, &store.get(&digests[0])?)?;
        each(1, b"four")?;
        each(2, b"of another length")
    }

    /// Ignores errors of the caller.
    fn deaf(
        store: &MemBlobStore,
        digests: &[Digest256],
        each: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        for (place, digest) in digests.iter().enumerate() {
            let _ = each(place, &store.get(digest)?);
        }
        Ok(())
    }

    #[test]
    fn what_a_store_gives_wrongly_among_many_is_asked_for_by_itself() {
        let store = Odd(MemBlobStore::new(), carelessly);
        let digests = [b"good", b"evil", b"long", b"gone"].map(|bytes| store.put(bytes).unwrap());
        let places = [0..4, 4..8, 8..12, 12..16];
        let mut into = [7; 16];
        fetch_into(&store, &digests, &places, &mut into).unwrap();
        assert_eq!(&into, b"goodevillonggone");

        let absent = [digests[0], digests[1], digests[2], Digest256::of(b"lost")];
        let lost = fetch_into(&store, &absent, &places, &mut into);
        assert!(matches!(lost, Err(Error::Missing { digest }) if digest == absent[3]), "{lost:?}");
        let mut found = [const { Vec::new() }; 4];
        fetch(&store, &digests, &mut |place, bytes| {
            found[place].extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        assert_eq!(found.concat(), b"goodevillonggone");

        let longer = [0..4, 4..8, 8..13, 12..16];
        let lost = fetch_into(&store, &digests, &longer, &mut into);
        assert!(matches!(lost, Err(Error::Corrupt { .. })), "{lost:?}");
    }

    #[test]
    fn a_blob_that_was_refused_is_told_even_if_the_store_ignores_it() {
        let store = Odd(MemBlobStore::new(), deaf);
        let digests = [b"good", b"evil", b"last"].map(|bytes| store.put(bytes).unwrap());
        let mut taken = Vec::new();
        let refused = fetch(&store, &digests, &mut |place, _| {
            taken.push(place);
            if place == 1 { Err(Error::corrupt("the second blob", "it is evil")) } else { Ok(()) }
        });
        assert!(
            matches!(&refused, Err(Error::Corrupt { what, .. }) if what == "the second blob"),
            "{refused:?}"
        );
        assert_eq!(taken, [0, 1], "nothing more is handed on");
    }
}
