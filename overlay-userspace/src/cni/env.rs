//! The request as the environment carries it: `CNI_COMMAND` and the parameters of an attachment, validated.
//!
//! Pure: variables come from a function. `CNI_PATH` is not looked at: this plugin delegates to no other.

use std::{ffi::OsString, fmt, path::PathBuf};

use overlay_common::maps::PodName;

use super::{
    failure::{Code, Failure},
    names,
    wanted::Wanted,
};

/// Longest interface name in bytes (`IFNAMSIZ` of linux/if.h less the terminator).
const IFNAME_MAX: usize = libc::IFNAMSIZ - 1;

/// One interface of one container. Both names are valid: see [`Attachment::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attachment {
    /// `CNI_CONTAINERID`.
    pub(super) container: String,
    /// `CNI_IFNAME`.
    pub(super) ifname: String,
}

impl Attachment {
    /// Validates both names by the rules of the specification (which are those of libcni's `utils` package).
    pub(super) fn new(container: String, ifname: String) -> Result<Self, Failure> {
        let invalid = |message| Err(Failure::new(Code::Environment, message));
        if !is_identifier(&container) {
            return invalid(format!(
                "CNI_CONTAINERID {container:?} is invalid: it must begin with a letter or a digit, and go on with these, `_`, `.` and `-`"
            ));
        }
        // A percent sign would make it a pattern for the kernel to fill in.
        let forbidden = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace();
        let reason = match ifname.as_str() {
            "" => "is empty",
            "." | ".." => "is a directory",
            // The kernel's own names below /proc/sys/net/ipv4/conf; it refuses such a device.
            "all" | "default" => "is reserved by the kernel",
            name if name.len() > IFNAME_MAX => "is longer than 15 bytes",
            name if name.contains(forbidden) => "contains a slash, a colon, a percent sign or white space",
            _ => return Ok(Self { container, ifname }),
        };
        invalid(format!("CNI_IFNAME {ifname:?} {reason}"))
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.ifname, self.container)
    }
}

/// `^[A-Za-z0-9][A-Za-z0-9_.-]*$`: container ids and names of networks.
pub(super) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// What the runtime wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Which versions of the specification are spoken.
    Version,
    /// Connect a container.
    Add {
        /// What to connect.
        attachment: Attachment,
        /// The container's network namespace.
        netns: PathBuf,
        /// What `CNI_ARGS` asks for.
        wanted: Wanted,
        /// What Kubernetes calls the pod, where the runtime says it.
        pod: Option<Box<PodName>>,
    },
    /// Is a container still connected as ADD left it?
    Check {
        /// What to look at.
        attachment: Attachment,
        /// The container's network namespace.
        netns: PathBuf,
    },
    /// Take it off again. The namespace does not matter: the pod's end goes with the node's.
    Del {
        /// What to take off.
        attachment: Attachment,
    },
    /// Take off whatever is not in the list of the configuration.
    Gc,
    /// Can containers be connected?
    Status,
}

impl Request {
    /// Reads a request from the variables that `get` knows.
    pub(super) fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let variables = Variables(get);
        let command = variables.required("CNI_COMMAND")?;
        match command.as_str() {
            "VERSION" => Ok(Self::Version),
            "ADD" => Ok(Self::Add {
                attachment: variables.attachment()?,
                netns: variables.netns()?,
                wanted: Wanted::from_args(&variables.optional("CNI_ARGS")?)?,
                pod: names::from_args(&variables.optional("CNI_ARGS")?).map(Box::new),
            }),
            "CHECK" => Ok(Self::Check { attachment: variables.attachment()?, netns: variables.netns()? }),
            "DEL" => Ok(Self::Del { attachment: variables.attachment()? }),
            "GC" => Ok(Self::Gc),
            "STATUS" => Ok(Self::Status),
            _ => Err(Failure::new(
                Code::Environment,
                format!(
                    "CNI_COMMAND {command:?} is unknown: overlay answers ADD, CHECK, DEL, GC, STATUS and VERSION"
                ),
            )),
        }
    }
}

struct Variables<F>(F);

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    /// Empty when it is not set.
    fn optional(&self, name: &str) -> Result<String, Failure> {
        (self.0)(name).unwrap_or_default().into_string().map_err(|value| {
            Failure::new(Code::Environment, format!("{name} {} is not UTF-8", value.display()))
        })
    }

    fn required(&self, name: &str) -> Result<String, Failure> {
        let value = self.optional(name)?;
        if value.is_empty() {
            let message = format!("{name} is not set: the runtime has to set it");
            return Err(Failure::new(Code::Environment, message));
        }
        Ok(value)
    }

    fn netns(&self) -> Result<PathBuf, Failure> {
        self.required("CNI_NETNS").map(Into::into)
    }

    fn attachment(&self) -> Result<Attachment, Failure> {
        Attachment::new(self.required("CNI_CONTAINERID")?, self.required("CNI_IFNAME")?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    const GOOD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/p"),
        ("CNI_IFNAME", "eth0"),
    ];

    /// The good variables with one replaced, or taken away.
    fn read(name: &str, value: Option<&str>) -> Result<Request, Failure> {
        Request::read(|wanted| {
            if wanted == name {
                return value.map(Into::into);
            }
            GOOD.into_iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.into())
        })
    }

    #[track_caller]
    fn refused(name: &str, value: Option<&str>) -> String {
        let failure = read(name, value).unwrap_err();
        assert_eq!(failure.code, Code::Environment, "{failure}");
        assert!(failure.message.contains(name), "{failure}");
        failure.message
    }

    #[test]
    fn requests_carry_their_attachment() {
        let attachment = Attachment { container: "c1".into(), ifname: "eth0".into() };
        let netns = PathBuf::from("/run/netns/p");
        let add = Request::Add {
            attachment: attachment.clone(),
            netns: netns.clone(),
            wanted: Wanted::default(),
            pod: None,
        };
        assert_eq!(read("", None).unwrap(), add);
        let check = Request::Check { attachment: attachment.clone(), netns };
        assert_eq!(read("CNI_COMMAND", Some("CHECK")).unwrap(), check);
        assert_eq!(read("CNI_COMMAND", Some("DEL")).unwrap(), Request::Del { attachment });
        assert_eq!(read("CNI_COMMAND", Some("VERSION")).unwrap(), Request::Version);
    }

    #[test]
    fn each_verb_needs_what_the_specification_says_and_no_more() {
        let only = |names: Vec<(&'static str, &'static str)>| {
            Request::read(move |wanted| names.iter().find(|(name, _)| *name == wanted).map(|(_, v)| v.into()))
        };
        let ids = [("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")];
        let del = [("CNI_COMMAND", "DEL")].into_iter().chain(ids).chain([("CNI_ARGS", "nonsense")]);
        assert!(matches!(only(del.collect()), Ok(Request::Del { .. })));
        for verb in ["ADD", "CHECK"] {
            let failure = only([("CNI_COMMAND", verb)].into_iter().chain(ids).collect()).unwrap_err();
            assert!(failure.message.contains("CNI_NETNS"), "{failure}");
        }
        assert_eq!(only(vec![("CNI_COMMAND", "VERSION")]), Ok(Request::Version));
        assert_eq!(only(vec![("CNI_COMMAND", "GC")]), Ok(Request::Gc));
        assert_eq!(only(vec![("CNI_COMMAND", "STATUS")]), Ok(Request::Status));
    }

    #[test]
    fn arguments_are_part_of_an_addition() {
        let Ok(Request::Add { wanted, .. }) = read("CNI_ARGS", Some("IgnoreUnknown=1;X=1;IP=10.244.1.5"))
        else {
            panic!("ADD with CNI_ARGS");
        };
        assert_eq!(wanted.addresses.v4, Some([10, 244, 1, 5].into()));
        refused("CNI_ARGS", Some("X=1"));
    }

    #[test]
    fn missing_and_empty_variables_are_named() {
        for name in GOOD.map(|(name, _)| name) {
            refused(name, None);
            refused(name, Some(""));
        }
        let failure = Request::read(|_| Some(OsString::from_vec(vec![0xff]))).unwrap_err();
        assert_eq!(failure.code, Code::Environment);
        assert!(failure.message.contains("UTF-8"), "{failure}");
    }

    #[test]
    fn other_verbs_are_unknown() {
        for verb in ["add", "ADD ", "UPDATE"] {
            assert!(refused("CNI_COMMAND", Some(verb)).contains("unknown"));
        }
    }

    #[test]
    fn container_ids_follow_the_specification() {
        for good in ["a", "0", "A-b_c.d", "cri-containerd-0123"] {
            assert!(read("CNI_CONTAINERID", Some(good)).is_ok(), "{good}");
        }
        for bad in ["-a", ".a", "_a", "a/b", "a b", "ä", "a\n", "../x"] {
            refused("CNI_CONTAINERID", Some(bad));
        }
    }

    #[test]
    fn interface_names_are_those_that_the_kernel_takes() {
        for good in ["eth0", "net1.5", "a", "fifteen-bytes-x", "..."] {
            assert!(read("CNI_IFNAME", Some(good)).is_ok(), "{good}");
        }
        for bad in [".", "..", "a/b", "a:1", "a b", "a\tb", "eth%d", "sixteen-bytes-xx", "all", "default"] {
            refused("CNI_IFNAME", Some(bad));
        }
    }
}
