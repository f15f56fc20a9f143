//! Runs each structure in hundreds of orders of its threads.

/// The number of orders: `SCHEDULES`, or 300.
fn orders() -> usize {
    std::env::var("SCHEDULES").map_or(300, |number| number.parse().unwrap())
}

#[test]
fn buffers_go_round() {
    schedules::buffers_go_round(orders());
}

#[test]
fn readers_get_their_bytes() {
    schedules::readers_get_their_bytes(orders());
}

#[test]
fn a_failing_store_ends_all_readers() {
    schedules::a_failing_store_ends_all_readers(orders());
}

#[test]
fn each_blob_is_claimed_once() {
    schedules::each_blob_is_claimed_once(orders());
}
