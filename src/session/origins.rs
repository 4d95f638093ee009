//! Looks up where processes belong: their control groups' paths by the numbers that the kernel side has recorded, and
//! for a command that memleak launched, memleak's own environment.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Instant;

use crate::model::image::{Image, Labels};
use crate::model::origin::Origin;
use crate::os::{cgroup, inherited};

/// How many control groups are remembered.
const MOST: usize = 32_768;

/// Looking at all control groups takes at most this share of the time.
const SHARE: u32 = 10;

/// What was found so far.
pub(super) struct Origins {
    /// What is true of every process, whatever its control group says.
    all: Origin,
    /// What is true of every process of which the control group does not say it.
    default: Origin,
    /// The SLUID of the job that memleak was started for, and the job's number: a control group may have only the SLUID.
    job: Option<[String; 2]>,
    /// By the control group's number.
    found: HashMap<u64, Arc<Origin>>,
    /// When they may be looked at again. A user may make new ones all the time.
    next: Instant,
}

impl Origins {
    /// For processes of this machine.
    pub(super) fn of_machine() -> Self {
        let host = nix::unistd::gethostname().ok();
        let job = ["SLURM_JOB_SLUID", "SLURM_JOB_ID"].map(variable);
        let all = Origin {
            host: host.map(|host| host.to_string_lossy().into_owned()),
            ..Origin::default()
        };
        Self {
            all,
            default: Origin::default(),
            job: match job {
                [Some(sluid), Some(number)] => Some([sluid, number]),
                _ => None,
            },
            found: HashMap::new(),
            next: Instant::now(),
        }
    }

    /// For a command that memleak launches: it is in memleak's own job and container, unless it leaves them.
    pub(super) fn of_command() -> Self {
        let own = cgroup::own_paths().into_iter();
        let own = own.fold(Origin::default(), |all, path| {
            all.or(Origin::of_cgroup(&path))
        });
        let machine = Self::of_machine();
        Self {
            all: Origin::of_environment(variable).or(machine.all.clone()),
            default: Origin {
                cgroup: None,
                ..own
            },
            ..machine
        }
    }

    /// Adds to an image where its process belongs. To be called soon after its end: a control group may be removed then.
    pub(super) fn find(&mut self, image: &mut Image) {
        let number = image.cgroup;
        if !self.found.contains_key(&number) && Instant::now() >= self.next {
            self.look_up(number);
        }
        let found = self.found.get(&number).cloned();
        let found = found.unwrap_or_else(|| Arc::new(self.origin(Origin::default())));
        image.origin = Some(match image.labels.is_empty() {
            true => found,
            false => Arc::new(with_labels(&found, &image.labels)),
        });
    }

    /// Remembers all control groups that there are, and that there is none of this number if it is not among them.
    fn look_up(&mut self, number: u64) {
        let began = Instant::now();
        let paths = match number {
            0 => HashMap::new(),
            _ => cgroup::paths(),
        };
        let mut found = std::mem::take(&mut self.found);
        if found.len() + paths.len() > MOST {
            found.clear();
        }
        for (number, path) in paths {
            let origin = || Arc::new(self.origin(Origin::of_cgroup(&path)));
            found.entry(number).or_insert_with(origin);
        }
        let origin = || Arc::new(self.origin(Origin::default()));
        found.entry(number).or_insert_with(origin);
        self.found = found;
        self.next = Instant::now() + began.elapsed() * (SHARE - 1);
    }

    /// What is known of a process, with what its control group says.
    fn origin(&self, mut of_cgroup: Origin) -> Origin {
        if let Some([sluid, number]) = &self.job
            && of_cgroup.job.as_ref() == Some(sluid)
        {
            of_cgroup.job = Some(number.clone());
        }
        self.all.clone().or(of_cgroup).or(self.default.clone())
    }
}

/// A variable of memleak's own environment.
fn variable(name: &str) -> Option<String> {
    inherited::variable(OsStr::new(name))?.into_string().ok()
}

/// With what a process's own environment says, as far as it was recorded (`--label-env`). Its rank is closer to it than
/// memleak's. A control group is believed first, because a process may set its variables as it likes.
fn with_labels(origin: &Origin, labels: &Labels) -> Origin {
    let own = Origin::of_environment(|name| String::from_utf8(labels.get(name)?.clone()).ok());
    Origin {
        rank: own.rank.or(origin.rank),
        ..origin.clone().or(own)
    }
}
