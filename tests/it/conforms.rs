//! Every store keeps the contract. The suite for that is behind the feature `conformance`, which
//! tests in the repository always have.

use std::sync::{Arc, Mutex};

use criu_rpc::{BlobStore, MemBlobStore, store::conformance};

use crate::stores::{Folder, Minimal, files_below, fresh};

#[test]
fn the_store_in_memory_conforms() {
    conformance::check(MemBlobStore::new);
}

#[test]
fn the_store_in_a_folder_conforms() {
    let folder = Folder::new();
    conformance::check(|| fresh(&folder));
    let staged = files_below(&folder).into_iter().filter(|path| path.parent().unwrap().ends_with("tmp"));
    assert_eq!(staged.count(), 0, "the suite left temporary files behind");
}

#[test]
fn a_store_of_three_methods_conforms() {
    conformance::check(Minimal::default);
}

#[test]
fn pointers_to_stores_conform() {
    let folder = Folder::new();
    conformance::check(|| Arc::new(fresh(&folder)));
    conformance::check(|| Arc::new(MemBlobStore::new()) as Arc<dyn BlobStore>);
    conformance::check(|| Box::new(Minimal::default()) as Box<dyn BlobStore>);
    let mut kept = Vec::new();
    kept.resize_with(100, MemBlobStore::new);
    let stores = Mutex::new(kept.iter());
    conformance::check(|| {
        stores.lock().unwrap().next().expect("because a hundred are more than the promises")
    });
}

#[cfg(feature = "encryption")]
mod encrypted {
    use criu_rpc::store::{Padding, StoreOptions, conformance};

    use crate::{encrypted::options, stores::Folder};

    #[test]
    fn an_encrypted_store_in_a_folder_conforms() {
        conforms(&options());
    }

    #[test]
    fn an_encrypted_store_conforms_with_padding() {
        conforms(&options().padding(Padding::Padme));
    }

    #[cfg(feature = "compression")]
    #[test]
    fn a_store_that_compresses_conforms() {
        conforms(&StoreOptions::new().compression(true));
    }

    #[cfg(feature = "compression")]
    #[test]
    fn a_store_that_compresses_and_encrypts_conforms() {
        conforms(&options().compression(true).padding(Padding::Padme));
    }

    #[cfg(feature = "object-store")]
    #[test]
    fn an_encrypted_store_of_objects_conforms() {
        conformance::check(|| options().open_url("memory:///encrypted").unwrap());
    }

    fn conforms(options: &StoreOptions) {
        let folder = Folder::new();
        let mut count = 0..;
        let next = std::cell::RefCell::new(|| count.next().unwrap());
        conformance::check(|| options.open(folder.join((next.borrow_mut())().to_string())).unwrap());
    }
}
