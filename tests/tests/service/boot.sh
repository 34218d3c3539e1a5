# Boots systemd as process 1 of namespaces of its own, with one service: the unit of deploy/systemd as it is delivered.
#
# UNIT: its file. BINARY: what is installed for it. CONFIG: the agent's configuration. BPF: a bpffs. DIR: an empty directory. NODE: its name. PINS:
# below /sys/fs/bpf, where BPF is. UNIFIED: 1 where control groups are.
# What systemd or the unit would change of the machine is a layer that goes with the namespace, or read-only.
set -eu
mount -t tmpfs tmpfs "$DIR"
mkdir "$DIR/run" "$DIR/etc" "$DIR/etc.work" "$DIR/local" "$DIR/local.work" "$DIR/units"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$DIR/etc,workdir=$DIR/etc.work" /etc
mount -t overlay overlay -o "lowerdir=/usr/local,upperdir=$DIR/local,workdir=$DIR/local.work" /usr/local

mkdir -p /usr/local/bin /etc/overlay /etc/default
install "$BINARY" /usr/local/bin/overlay
cp "$CONFIG" /etc/overlay/overlay.toml
printf 'NODE_NAME=%s\nOVERLAY_PINS=%s\nOVERLAY_MESH=false\n' "$NODE" "$PINS" > /etc/default/overlay

# The targets that the unit refers to, with none of what the machine itself has in them.
for target in sysinit basic shutdown network-online multi-user; do
    printf '[Unit]\nDefaultDependencies=no\n' > "$DIR/units/$target.target"
done
printf 'Wants=overlay.service\nAfter=overlay.service\n' >> "$DIR/units/multi-user.target"
cp "$UNIT" "$DIR/units/overlay.service"
mkdir "$DIR/units/overlay.service.d"
# A minute is long for a test. Everything else is the unit's.
printf '[Service]\nWatchdogSec=2\n' > "$DIR/units/overlay.service.d/watchdog.conf"

# Where it is that of this network already, it cannot be mounted again.
mount -t sysfs sysfs /sys 2>/dev/null || true
mount --bind "$BPF" /sys/fs/bpf
if [ "$UNIFIED" = 1 ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
for part in fs kernel vm; do
    mount --bind "/proc/sys/$part" "/proc/sys/$part"
    mount -o remount,bind,ro "/proc/sys/$part"
done
mount --bind "$DIR/units" /mnt
mount -t tmpfs tmpfs /run
mkdir -p /run/lock
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=lab SYSTEMD_UNIT_PATH=/mnt \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=null --show-status=no
