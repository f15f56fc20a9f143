# Checks of the installed version of Rust, to be sourced.

# rust_version MANIFEST: the oldest Rust that the package promises.
rust_version() {
    sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' "$1"
}

# rust_suffices MANIFEST: succeeds if the Rust here is new enough for the package; otherwise says
# so.
rust_suffices() {
    local wanted has
    wanted=$(rust_version "$1")
    has=$("${RUSTC:-rustc}" --version | cut -d ' ' -f 2)
    [[ $(printf '%s\n%s\n' "$has" "$wanted" | sort -V | head -n 1) == "$wanted" ]] && return
    echo "left out: ${1%/*} needs Rust $wanted, and this is Rust $has" >&2
    return 1
}
