# What depends on the version of Rust that is here: RUSTC, or else rustc. To be sourced.

rust_is() {
    local has
    has=$("${RUSTC:-rustc}" --version | cut -d ' ' -f 2)
    [[ $(printf '%s\n%s\n' "$has" "$1" | sort -V | head -n 1) == "$1" ]]
}

# rust_suffices MANIFEST: whether the Rust here is one that the package's rust-version allows; if not, says so.
rust_suffices() {
    local wanted
    wanted=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' "$1")
    rust_is "$wanted" && return
    echo "left out: ${1%/*} needs Rust $wanted, and this is $("${RUSTC:-rustc}" --version)" >&2
    return 1
}

# all_features: what to tell cargo for all that this Rust can build.
all_features() {
    if rust_is 1.89; then
        echo --all-features
        return
    fi
    echo "left out: the feature multi-buffer needs Rust 1.89, and this is $("${RUSTC:-rustc}" --version)" >&2
    sed -n '/^\[features\]/,/^\[dep/s/^\([a-z-]*\) = .*/\1/p' Cargo.toml | grep -vxE 'default|multi-buffer' |
        paste -sd , | sed 's/^/--features=/'
}
