# Makes the registry's root small: run by mmdebstrap with the root's folder. The root is only
# unpacked, so no program of its own can run in it.
applets=$(grep -v '^#' "$(dirname "$0")/registry.applets")
cd "$1" || exit 1
find dev run var/cache var/lib/apt var/lib/dpkg usr/share/lintian usr/share/man \
    -mindepth 1 -delete 2>/dev/null
find usr/share/doc ! -type d ! -name copyright -delete
rm -f etc/resolv.conf etc/hostname
find . -xdev -perm /6000 -exec chmod ug-s {} +
for applet in $applets; do
    [ -e "usr/bin/$applet" ] || ln -s busybox "usr/bin/$applet"
done
