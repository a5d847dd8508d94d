#!/bin/sh
# The engine of one learner; its data are in the volume at /engine, its socket in the one at
# /run/lab. DISK, 12G say, is how much the data may take; empty, there is no limit but the disk.
set -eu
data=/engine/data
mkdir -p $data
if [ -n "${DISK:-}" ] || [ -e /engine/disk ]; then
    # A disk in a file: full for this learner, while the others' builds go on. One that is there is
    # taken as it is, whatever is said later.
    if [ ! -e /engine/disk ]; then
        truncate --size "$DISK" /engine/disk.new
        mkfs.ext4 -q -F -m 0 /engine/disk.new
        mv /engine/disk.new /engine/disk
    fi
    [ -e /dev/loop-control ] || mknod /dev/loop-control c 10 237
    tries=0 free=
    until [ -e "$free" ] && losetup "$free" /engine/disk 2> /tmp/why; do
        # Another engine may have taken it at the same time.
        tries=$((tries + 1))
        [ $tries -lt 50 ] || {
            echo "mounting the disk: $(cat /tmp/why) With 'room start --disk none' none is made." >&2
            exit 1
        }
        free=$(losetup --find 2> /tmp/why) || continue
        free=${free%% *} # behind a name that has no node here, it says so
        [ -e "$free" ] || mknod -m 660 "$free" b 7 "${free#/dev/loop}"
    done
    mount "$free" $data
    losetup --detach "$free" # as soon as it is mounted no more
fi
mkdir -p $data/labapp/certs.d $data/labapp/upper $data/labapp/work

# The registry of the class, and whom to trust for it; the lab beside needs to know, too.
if [ -n "${REGISTRY:-}" ]; then
    mkdir -p "$data/labapp/certs.d/$REGISTRY"
    printf %s "$AUTHORITY" | tee "$data/labapp/certs.d/$REGISTRY/ca.crt" > /run/lab/class.pem
fi

# What runs in this engine stays within the limits of this container: its control groups are below
# the container's own, which not every container may write at first.
for group in /sys/fs/cgroup /sys/fs/cgroup/*/; do
    mount -o remount,bind,rw "$group" 2> /dev/null || :
done
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    # Version 2: a group that has members can't give its limits on.
    mkdir -p /sys/fs/cgroup/init
    xargs -rn1 < /sys/fs/cgroup/cgroup.procs > /sys/fs/cgroup/init/cgroup.procs 2> /dev/null || :
    sed -e 's/ / +/g' -e 's/^/+/' < /sys/fs/cgroup/cgroup.controllers \
        > /sys/fs/cgroup/cgroup.subtree_control
fi

# What learners' labs need to know; and the registry's image, which they all run.
cp /opt/labapp/bases.json /run/lab/
echo "lowerdir=/opt/labapp/registry,upperdir=$data/labapp/upper,workdir=$data/labapp/work" \
    > /run/lab/overlay
(
    until docker --host unix:///run/lab/docker.sock load --quiet --input /opt/labapp/registry.tar
    do sleep 0.2; done > /dev/null 2>&1
) &

# Nobody in the room is let through to what runs in here; what this engine starts may go out.
strangers="-i eth0 -m conntrack --ctstate NEW -j DROP"
iptables -N DOCKER-USER 2> /dev/null || :
iptables -C DOCKER-USER $strangers 2> /dev/null || iptables -I DOCKER-USER $strangers

rm -f /var/run/docker.pid /run/docker/containerd/containerd.pid
exec tini -- dockerd --host=unix:///run/lab/docker.sock --group=1000 --data-root=$data \
    --shutdown-timeout=5 --exec-opt native.cgroupdriver=cgroupfs
