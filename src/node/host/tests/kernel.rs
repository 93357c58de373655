use super::*;

#[test]
fn where_a_gpu_sits_is_read_from_sysfs() {
    let machine = Machine::new();
    let device = "devices/pci0000:1a/0000:1a:01.0/0000:1b:00.0";
    machine.write(&format!("sys/{device}/numa_node"), "1\n");
    let link = machine.path(&format!("sys/bus/pci/devices/{PCI}"));
    symlink(format!("../../../{device}"), link).unwrap();
    assert_eq!(machine.host.pcie_root(PCI).as_deref(), Some("pci0000:1a"));
    assert_eq!(machine.host.numa_node(PCI), Some(1));

    assert_eq!(machine.host.pci_class(PCI), None);
    machine.write(&format!("sys/{device}/class"), "0x030200\n");
    assert_eq!(machine.host.pci_class(PCI).as_deref(), Some("0x030200"));

    machine.write(&format!("sys/{device}/numa_node"), "-1\n");
    assert_eq!(machine.host.numa_node(PCI), None);
    assert_eq!(machine.host.numa_node("0000:ff:00.0"), None);
    assert_eq!(machine.host.pcie_root("0000:ff:00.0"), None);
}

#[test]
fn the_boot_and_processes_are_read_from_procfs() {
    let machine = Machine::new();
    let path = machine.host.proc_root.join("sys/kernel/random/boot_id");
    let error = machine.host.boot_id().unwrap_err().to_string();
    assert_eq!(error, format!("cannot read `{}`", path.display()));
    machine.write("proc/sys/kernel/random/boot_id", "\n");
    let error = machine.host.boot_id().unwrap_err().to_string();
    assert_eq!(error, format!("`{}` does not say which boot this is", path.display()));
    machine.write("proc/sys/kernel/random/boot_id", "0b6c2f1e\n");
    assert_eq!(machine.host.boot_id().unwrap(), "0b6c2f1e");

    machine.write("proc/4242/comm", "python3\n");
    assert_eq!(machine.host.process_name(4242).as_deref(), Some("python3"));
    assert_eq!(machine.host.process_name(4243), None);
    machine.write("proc/4244/comm", "a\nb\u{1b}[2J\u{202e}\n");
    assert_eq!(machine.host.process_name(4244).as_deref(), Some(r"a\nb\u{1b}[2J\u{202e}"));
}
