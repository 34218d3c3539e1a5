//! Calls that are killed, after each of their steps in turn: what follows leaves nothing behind.

use std::net::IpAddr;

use overlay_tests::lab::{CniCall, Families, Namespace, overlay_binary};
use overlay_tests::trace::{End, kill_after};
use overlay_tests::traffic::ping;
use serde_json::{Value, json};

use crate::bed::{Bed, GATEWAY, NODE, expect_same};

/// More than any call has.
const STEPS_MAX: usize = 80;

/// The plugin's own code.
const ADDED_ALREADY: i64 = 101;

/// The call as a program to be traced.
fn kill_call(bed: &Bed, call: &CniCall, last: usize) -> End {
    let mut command = bed.node.namespace().command(overlay_binary());
    command.env_clear().env("CNI_COMMAND", &call.command).env("CNI_CONTAINERID", &call.container_id);
    command.env("CNI_IFNAME", &call.ifname).env("CNI_NETNS", call.netns.as_ref().unwrap());
    kill_after(command, &call.conf.to_string(), last)
}

/// What follows a call that was killed.
#[derive(Clone, Copy, Debug)]
enum Then {
    Del,
    Gc,
    AddAgain,
}

struct Sweep<'a> {
    bed: &'a Bed,
    other: Namespace,
    pod: Namespace,
    keys: Value,
    outside: Value,
    inside: Value,
}

impl<'a> Sweep<'a> {
    fn new(bed: &'a Bed, keys: Value) -> Self {
        let (other, pod) = (bed.sandbox("other"), bed.sandbox("pod"));
        bed.must("ADD", &other, json!({}));
        // The first of a pod's life also makes what stays: an IPv6 table, say.
        bed.must("ADD", &pod, keys.clone());
        bed.must("DEL", &pod, keys.clone());
        let (outside, inside) = (bed.snapshot(), Bed::inside(&pod));
        Self { bed, other, pod, keys, outside, inside }
    }

    #[track_caller]
    fn expect_clean(&self, after: &str) {
        expect_same(&self.bed.snapshot(), &self.outside, after);
        expect_same(&Bed::inside(&self.pod), &self.inside, after);
    }

    #[track_caller]
    fn expect_works(&self, after: &str) {
        let answer = ping::ping(&self.pod, GATEWAY.parse::<IpAddr>().unwrap());
        answer.unwrap_or_else(|error| panic!("{after}: {error:#}"));
    }

    #[track_caller]
    fn follow(&self, verb: &str, then: Then, after: &str) {
        let Self { bed, pod, keys, .. } = self;
        match then {
            Then::Del => drop(bed.must("DEL", pod, keys.clone())),
            Then::Gc => {
                bed.collect(&[&self.other]).unwrap_or_else(|error| panic!("{after}: {error}"));
            }
            Then::AddAgain => {
                match bed.cni("ADD", pod, keys.clone()) {
                    // All of it was done, and only the answer was missing; or all of it is to be undone by a child
                    // of the call, which lives on.
                    Err(error) if error.code == ADDED_ALREADY => {
                        if verb == "ADD" {
                            self.expect_works(after);
                        }
                        bed.must("DEL", pod, keys.clone());
                        bed.must("ADD", pod, keys.clone());
                    }
                    result => drop(result.unwrap_or_else(|error| panic!("{after}: {error}"))),
                }
                self.expect_works(after);
                bed.must("DEL", pod, keys.clone());
            }
        }
        self.expect_clean(after);
    }

    /// Kills `verb` after each of its steps in turn, once for each of `then`. Returns how many steps there were.
    #[track_caller]
    fn run(&self, verb: &str, then: &[Then]) -> usize {
        for last in 1..STEPS_MAX {
            for then in then {
                if verb == "DEL" {
                    self.bed.must("ADD", &self.pod, self.keys.clone());
                }
                let call = self.bed.call(verb, &self.pod, self.keys.clone());
                match kill_call(self.bed, &call, last) {
                    End::Killed { step } => {
                        self.follow(
                            verb,
                            *then,
                            &format!("{verb} killed after step {last} ({step}), {then:?}"),
                        );
                    }
                    End::Exited(code) => {
                        assert_eq!(code, 0, "{verb} that is not killed succeeds");
                        self.follow(verb, *then, &format!("{verb} not killed, {then:?}"));
                        self.expect_other_works();
                        return last - 1;
                    }
                }
            }
        }
        panic!("{verb} has more than {STEPS_MAX} steps");
    }

    fn expect_other_works(&self) {
        ping::ping(&self.other, GATEWAY.parse::<IpAddr>().unwrap()).unwrap();
        let call = self.bed.call("ADD", &self.other, json!({}));
        assert_eq!(self.bed.node.cni(&call).unwrap_err().code, ADDED_ALREADY, "it is there, untouched");
    }
}

#[test]
fn an_addition_killed_at_any_step_leaves_nothing_after_deletion_collection_or_another_addition() {
    let bed = Bed::start();
    // No verb needs it.
    bed.node.stop_agent();
    let steps = Sweep::new(&bed, json!({})).run("ADD", &[Then::Del, Then::Gc, Then::AddAgain]);
    assert!(steps >= 15, "an addition has {steps} steps: the tracer sees too little");
    println!("ADD killed after each of {steps} steps");
}

#[test]
fn an_addition_in_both_families_killed_at_any_step_leaves_nothing_of_either() {
    let bed = Bed::start_with(Families::Dual);
    bed.node.stop_agent();
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let sweep = Sweep::new(&bed, json!({"runtimeConfig": {"portMappings": ports}}));
    for verb in ["ADD", "DEL"] {
        let steps = sweep.run(verb, &[Then::Del, Then::Gc, Then::AddAgain]);
        println!("{verb} in both families killed after each of {steps} steps");
    }
}

#[test]
fn an_addition_by_links_killed_at_any_step_leaves_nothing_either() {
    let bed = Bed::start();
    let steps = Sweep::new(&bed, json!({"attach": "tcx"})).run("ADD", &[Then::Del, Then::Gc, Then::AddAgain]);
    assert!(steps >= 15, "an addition has {steps} steps: the tracer sees too little");
    println!("ADD with links killed after each of {steps} steps");
}

fn with_ports() -> Value {
    let udp = json!({"hostPort": 5300, "containerPort": 53, "protocol": "udp"});
    let here = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": NODE});
    json!({"runtimeConfig": {"portMappings": [udp, here]}})
}

#[test]
fn an_addition_with_host_ports_killed_at_any_step_leaves_none() {
    let bed = Bed::start();
    bed.node.stop_agent();
    let steps = Sweep::new(&bed, with_ports()).run("ADD", &[Then::Del, Then::Gc, Then::AddAgain]);
    assert!(steps >= 19, "an addition with host ports has {steps} steps: the tracer sees too little");
    println!("ADD with host ports killed after each of {steps} steps");
}

#[test]
fn a_deletion_with_host_ports_killed_at_any_step_is_finished_by_the_next_call() {
    let bed = Bed::start();
    bed.node.stop_agent();
    let mut sweep = Sweep::new(&bed, with_ports());
    for others in [false, true] {
        if others {
            // Another pod's, which stay.
            let ports = json!([{"hostPort": 9090, "containerPort": 90, "protocol": "tcp"}]);
            bed.must("DEL", &sweep.other, json!({}));
            bed.must("ADD", &sweep.other, json!({"runtimeConfig": {"portMappings": ports}}));
            sweep.outside = bed.snapshot();
        }
        let steps = sweep.run("DEL", &[Then::Del, Then::Gc, Then::AddAgain]);
        assert!(steps >= 6, "a deletion with host ports has {steps} steps: the tracer sees too little");
        println!("DEL with host ports killed after each of {steps} steps");
    }
}

#[test]
fn a_deletion_killed_at_any_step_is_finished_by_the_next_call() {
    let bed = Bed::start();
    for attach in ["clsact", "tcx"] {
        let sweep = Sweep::new(&bed, json!({"attach": attach}));
        let steps = sweep.run("DEL", &[Then::Del, Then::Gc, Then::AddAgain]);
        assert!(steps >= 2, "a deletion has {steps} steps: the tracer sees too little");
        println!("DEL ({attach}) killed after each of {steps} steps");
        bed.must("DEL", &sweep.other, json!({}));
    }
}
