# Pid 1 of a node's container runtimes, in pid and mount namespaces of its own; see runtime.rs.
# Arguments: the lab's directory, the directory whose content goes over /, the plugin's binary.
set -eu
lab=$1 files=$2 plugin=$3 new=$2/run

# This namespace began with copies of all mounts. Those of other labs would keep their namespaces and pins alive.
while read -r _ _ _ _ point _; do
    case $point in
        "$lab"/*) ;;
        /run/netns/* | /run/overlay-lab/*) umount -n -l "$point" || true ;;
    esac
done </proc/self/mountinfo

# A /run of its own, in which only the lab's directory is the machine's.
mkdir "$new"
mount -n -t tmpfs run "$new"
mkdir -p "$new/lock" "$new/netns" "$new/upper" "$new/work" "$new${lab#/run}"
mount -n --bind "$lab" "$new${lab#/run}"
mount -n --bind "$lab/bpf" "$new${lab#/run}/bpf"
touch "$new/plugin"
mount -n --bind "$plugin" "$new/plugin"
# Changes to /etc stay here too.
mount -n -t overlay -o "lowerdir=/etc,upperdir=$new/upper,workdir=$new/work" etc /etc
mount -n --move "$new" /run

# Where runtimes keep state. Nothing of the machine's is seen there, nothing is written to it.
for dir in /dev/shm /opt /var/lib /var/tmp; do
    mount -n -t tmpfs state "$dir"
done
mkdir -p /etc/cni
mount -n -t tmpfs cni /etc/cni
# One hierarchy that nobody writes to, whatever the machine's cgroups are like: crun refuses hybrid ones.
mount -n -t cgroup2 cgroup2 /sys/fs/cgroup
mount -n -o remount,bind,ro /sys/fs/cgroup

cp -a "$files/root/." /
# The root file system of all containers: what the machine has, changes kept here.
mkdir /var/lib/rootfs /var/lib/rootfs.upper /var/lib/rootfs.work
layers=lowerdir=/,upperdir=/var/lib/rootfs.upper,workdir=/var/lib/rootfs.work
mount -n -t overlay -o "$layers" rootfs /var/lib/rootfs
mkdir -p /opt/cni/bin
ln -s /usr/lib/cni/* /opt/cni/bin/
ln -s /run/plugin /opt/cni/bin/overlay

echo ready
exec >/dev/null
# The shell reaps whatever is left to pid 1 while it waits.
sleep infinity &
wait
