# shellcheck shell=bash
# apt for scripts/install-criu and scripts/test-programs, to be sourced. The caller defines `say` (tell the user) and `note`
# (tell the user, and remember it as a reason). Descriptor 9 may be the caller's lock, which no
# child inherits. scripts/install-criu explains CRIU_APT_MIRROR, CRIU_APT_KEYRING and
# CRIU_APT_ALLOW_EXPIRED.

apt_is_updated=''

#---- the machine's own apt

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=1 \
        -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 "$@" >&2 9>&- </dev/null
}

# A failing source is no error here: the other sources may have what is needed.
apt_update() {
    [[ -z $apt_is_updated ]] || return 0
    apt_is_updated=1
    say "apt-get update"
    apt_get -qq update || say "apt-get update failed in part; going on with what there is"
}

apt_install() {
    apt_update
    say "apt-get install $*"
    apt_get -qq install --no-install-recommends "$@"
}

candidate_of() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *//p' | grep -v '(none)' || true; }

#---- packages of other suites, unpacked into a folder of their own

# Mirrors of the machine's own distribution ($1: Debian or Ubuntu). Each file is read by itself, so
# that a broken file does not hide the others. Before the first apt-get update the origin is
# unknown, so the suite's name decides.
mirrors_of() {
    local origin=$1 codename file
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [[ -r $file ]] || continue
        # shellcheck disable=SC2016 # apt expands these
        apt-get indextargets -o Dir::Etc::sourcelist="$file" -o Dir::Etc::sourceparts=/dev/null \
            --format '$(REPO_URI) $(RELEASE) x$(ORIGIN)' 'Created-By: Packages' 2>/dev/null || true
    done | awk -v origin="x$origin" -v codename="$codename" '
        $1 ~ /security/ || $1 ~ /^cdrom:/ { next }
        $3 == origin || ($3 == "x" && ($2 ~ "^" codename || $2 ~ /^(stable|testing|unstable|sid)$/)) { print $1 }
        ' | awk '!seen[$0]++'
}

keyring() {
    local file
    for file in /usr/share/keyrings/"$1"-archive-keyring.{pgp,gpg}; do
        if [[ -r $file ]]; then
            echo "$file"
            return
        fi
    done
    return 1
}

debian_mirrors() {
    local distribution
    # shellcheck source=/dev/null
    distribution=$(. /etc/os-release && echo "${ID-}")
    if [[ -n ${CRIU_APT_MIRROR-} ]]; then
        echo "$CRIU_APT_MIRROR"
    elif [[ $distribution == debian ]]; then
        mirrors_of Debian
    fi
}

debian_keyring() {
    if [[ -n ${CRIU_APT_KEYRING-} ]]; then
        echo "$CRIU_APT_KEYRING"
    elif ! keyring debian; then
        apt_install debian-archive-keyring || true
        keyring debian
    fi
}

# private_apt FOLDER MIRROR SUITE COMPONENTS KEYRING: sets up an apt that knows only this source,
# and no installed package. Use it with APT_CONFIG=FOLDER/apt.conf.
private_apt() {
    local folder=$1 mirror=$2 suite=$3 components=$4 keys=$5 arch said
    [[ -r $keys ]] || { note "there is no keyring $keys"; return 1; }
    mkdir -p "$folder"/{none,root,state/lists/partial,cache/archives/partial}
    : >"$folder/status"
    arch=$(dpkg --print-architecture)
    {
        # The settings that the machine needs to reach its mirrors (such as proxies), but none of
        # its hooks and sources.
        apt-config dump | grep -E '^(Acquire|APT::Sandbox)::' | grep -vE '^Acquire::(IndexTargets|Languages|GzipIndexes)' || true
        cat <<END
Dir::State "$folder/state";
Dir::State::status "$folder/status";
Dir::Cache "$folder/cache";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "$folder/none";
Dir::Etc::sourcelist "$folder/sources.list";
Dir::Etc::sourceparts "$folder/none";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$folder/none";
Acquire::Languages "none";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
END
        if [[ ${CRIU_APT_ALLOW_EXPIRED-} == 1 ]]; then
            echo 'Acquire::Check-Valid-Until "false";'
        fi
    } >"$folder/apt.conf"
    if APT_CONFIG=$folder/apt.conf apt-config dump | grep -qiE '^Acquire::Check-Valid-Until "(false|no|off|0)"'; then
        if [[ ${CRIU_APT_ALLOW_EXPIRED-} == 1 ]]; then said=CRIU_APT_ALLOW_EXPIRED; else said="this machine's apt configuration"; fi
        say "an index is taken even if it has expired, as $said wants it"
    fi
    echo "deb [signed-by=$keys] $mirror $suite $components" >"$folder/sources.list"

    if ! said=$(APT_CONFIG=$folder/apt.conf apt_get -qq update 2>&1); then
        if grep -q 'is expired' <<<"$said"; then
            note "the index of suite $suite at $mirror has expired ($(grep -o 'invalid since [^)]*' <<<"$said" | head -n 1)): the mirror is behind, or this machine's clock ahead. Use another mirror (CRIU_APT_MIRROR), or accept it with CRIU_APT_ALLOW_EXPIRED=1"
        else
            note "suite $suite at $mirror cannot be used: $(grep -E '^(E|W|Err):' <<<"$said" | head -n 2 | tr '\n' ' ')"
        fi
        return 1
    fi
}

# private_unpack FOLDER WHAT PACKAGE...: unpacks the packages and all their dependencies into
# FOLDER/root.
private_unpack() {
    local folder=$1 what=$2 deb said
    shift 2
    if ! said=$(APT_CONFIG=$folder/apt.conf apt_get -qq install --download-only --no-install-recommends "$@" 2>&1); then
        note "could not download $what: $(grep -E '^E:' <<<"$said" | head -n 2 | tr '\n' ' ')"
        return 1
    fi
    for deb in "$folder"/cache/archives/*.deb; do
        dpkg -x "$deb" "$folder/root" || { note "could not unpack ${deb##*/}"; return 1; }
    done
}
