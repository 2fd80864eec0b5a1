"""The VM lab: a stock QEMU and a stock Debian guest, built once, booted under TCG on any vhost-user GPU back end."""
