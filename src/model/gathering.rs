//! Gathers what documents are made of, within bounds: of very many images and call stacks, those that leaked most are
//! kept.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::model::finished::{About, Finished, Site};
use crate::model::image::{End, Image, Labels};
use crate::model::ledger::Summary;
use crate::model::reach::{Amount, Reached};
use crate::model::selection::Selection;
use crate::model::stack::NamedStack;

/// How many images are kept at the end. One takes about half a kilobyte.
const MOST_IMAGES: usize = 10_000;

/// How many frames the kept call stacks have at the end. A frame takes about a quarter of a kilobyte, or 8 bytes if it is in
/// several stacks.
const MOST_FRAMES: usize = 1 << 20;

/// What was gathered so far.
#[derive(Debug)]
pub struct Gathering {
    most_images: usize,
    most_frames: usize,
    /// The images, each with its number in the order of their ends.
    images: Vec<(u64, Image)>,
    seen_images: u64,
    sites: HashMap<SiteKey, Gathered>,
    frames: usize,
    has_more_sites: bool,
}

#[derive(Debug)]
struct Gathered {
    site: Site,
    /// The image that allocated here last. What an image allocated by its stacks comes together.
    last: (u32, u32),
}

/// What tells sites apart: the executable, or without one the command name, the labels, and the stack's identity.
type SiteKey = (Option<PathBuf>, Vec<u8>, Labels, u64);

/// What an image allocated by one call stack.
#[derive(Clone, Copy, Debug)]
pub struct SiteShare<'a> {
    /// The image, by its pid and its number within the process.
    pub image: (u32, u32),
    pub exe: Option<&'a Path>,
    pub comm: &'a [u8],
    pub labels: &'a Labels,
    /// How the image ended. Only an image that has ended has leaked.
    pub end: End,
    pub allocated: Amount,
    pub leaked: Amount,
    /// How what leaked could be reached, if that is known.
    pub reached: Option<Reached>,
}

impl Default for Gathering {
    fn default() -> Self {
        Self::within(MOST_IMAGES, MOST_FRAMES)
    }
}

impl Gathering {
    fn within(most_images: usize, most_frames: usize) -> Self {
        Self {
            most_images,
            most_frames,
            images: Vec::new(),
            seen_images: 0,
            sites: HashMap::new(),
            frames: 0,
            has_more_sites: false,
        }
    }

    /// Takes an image. Its call stacks are not looked at.
    pub fn image(&mut self, image: &Image) {
        let image = Image {
            stacks: None,
            ..image.clone()
        };
        self.images.push((self.seen_images, image));
        self.seen_images += 1;
        if self.images.len() > 2 * self.most_images {
            self.leave_out_images();
        }
    }

    /// Takes what an image allocated by a call stack.
    pub fn stack(&mut self, share: SiteShare, stack: &NamedStack) {
        let has_leaked = matches!(share.end, End::Exited(_) | End::Signaled { .. });
        let (leaked, reached) = match has_leaked && share.leaked.blocks > 0 {
            true => (share.leaked, share.reached),
            false => (Amount::default(), Some(Reached::default())),
        };
        let comm = match share.exe {
            Some(_) => Vec::new(),
            None => share.comm.to_vec(),
        };
        let exe = share.exe.map(Path::to_path_buf);
        let key = (exe, comm, share.labels.clone(), stack.identity);
        let mut frames = 0;
        let Gathered { site, last } = self.sites.entry(key).or_insert_with(|| {
            frames = stack.frames.len();
            let site = Site {
                exe: share.exe.map(Path::to_path_buf),
                comm: share.comm.to_vec(),
                labels: share.labels.clone(),
                stack: stack.clone(),
                allocated: Amount::default(),
                leaked: Amount::default(),
                reached: Some(Reached::default()),
                images: 0,
            };
            let last = share.image;
            Gathered { site, last }
        });
        site.allocated += share.allocated;
        site.leaked += leaked;
        site.reached = site.reached.zip(reached).map(|(mut sum, more)| {
            sum += more;
            sum
        });
        // Several stacks of an image may have one identity: it does not depend on lines.
        let is_another = site.images == 0 || *last != share.image;
        site.images += u64::from(is_another);
        *last = share.image;
        self.frames += frames;
        if self.frames > 2 * self.most_frames {
            self.leave_out_sites();
        }
    }

    /// Keeps the images that leaked most, in the order of their ends.
    fn leave_out_images(&mut self) {
        if self.images.len() > self.most_images {
            self.images.sort_by_key(|(number, image)| {
                let leaked = match image.end {
                    End::Exited(_) | End::Signaled { .. } => image.counters.leaked_bytes,
                    End::Exec | End::Running => 0,
                };
                (Reverse(leaked), *number)
            });
            self.images.truncate(self.most_images);
            self.images.sort_by_key(|(number, _)| *number);
        }
    }

    /// Keeps the sites that leaked most.
    fn leave_out_sites(&mut self) {
        let sites = std::mem::take(&mut self.sites);
        let mut sites: Vec<_> = sites.into_iter().collect();
        sites.sort_unstable_by_key(|(_, gathered)| weight(&gathered.site));
        let mut frames = 0;
        let all = sites.len();
        sites.retain(|(_, gathered)| {
            frames += gathered.site.stack.frames.len();
            frames <= self.most_frames
        });
        self.has_more_sites |= sites.len() < all;
        self.sites = sites.into_iter().collect();
        let kept = self.sites.values();
        self.frames = kept.map(|kept| kept.site.stack.frames.len()).sum();
    }

    /// All that was gathered.
    pub fn finish(mut self, about: About, selection: Selection, summary: Summary) -> Finished {
        self.leave_out_images();
        if self.frames > self.most_frames {
            self.leave_out_sites();
        }
        let sites = self.sites.into_values().map(|gathered| gathered.site);
        let mut sites: Vec<Site> = sites.collect();
        sites.sort_unstable_by(|one, other| {
            let names = |site: &Site| (site.exe.clone(), site.comm.clone(), site.labels.clone());
            (weight(one).cmp(&weight(other))).then_with(|| names(one).cmp(&names(other)))
        });
        let images: Vec<Image> = self.images.into_iter().map(|(_, image)| image).collect();
        Finished {
            about,
            more_images: self.seen_images - images.len() as u64,
            images,
            sites,
            has_more_sites: self.has_more_sites,
            selection,
            summary,
        }
    }
}

/// The order of sites: those that leaked most come first.
fn weight(site: &Site) -> (Reverse<[u64; 4]>, u64) {
    let Amount { bytes, blocks } = site.leaked;
    let allocated = site.allocated;
    (
        Reverse([bytes, blocks, allocated.bytes, allocated.blocks]),
        site.stack.identity,
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::exit::Outcome;
    use crate::model::image::Losses;
    use crate::model::image::samples::image;
    use crate::model::ledger::Ledger;
    use crate::model::stack::WalkEnd;

    fn stack(identity: u64, frames: usize) -> NamedStack {
        NamedStack {
            identity,
            frames: vec![Arc::default(); frames],
            end: WalkEnd::Complete,
            guessed: 0,
        }
    }

    static NONE: Labels = Labels::new();

    fn share(exe: &str, leaked: u64) -> SiteShare<'_> {
        SiteShare {
            image: (1, 0),
            exe: Some(Path::new(exe)),
            comm: b"a",
            labels: &NONE,
            end: End::Exited(0),
            allocated: Amount {
                bytes: 100,
                blocks: 10,
            },
            leaked: Amount {
                bytes: leaked,
                blocks: leaked.min(1),
            },
            reached: None,
        }
    }

    fn finish(gathering: Gathering) -> Finished {
        let summary = Ledger::new(None).finish(Losses::default(), Outcome::Watched);
        gathering.finish(About::default(), Selection::default(), summary)
    }

    #[test]
    fn the_same_stack_of_one_executable_is_one_site_and_the_largest_leak_comes_first() {
        let mut gathering = Gathering::default();
        gathering.stack(share("/a", 3), &stack(1, 1));
        gathering.stack(share("/b", 5), &stack(1, 1));
        // Of another image, twice.
        for leaked in [1, 3] {
            let image = (1, 1);
            let other = SiteShare {
                image,
                ..share("/a", leaked)
            };
            gathering.stack(other, &stack(1, 1));
        }
        let sites = finish(gathering).sites;
        let found = sites.iter().map(|site| {
            let exe = site.exe.as_deref().unwrap();
            (exe.to_str().unwrap(), site.leaked.bytes, site.images)
        });
        assert_eq!(found.collect::<Vec<_>>(), [("/a", 7, 2), ("/b", 5, 1)]);
        assert_eq!(sites[0].allocated.blocks, 30);
    }

    #[test]
    fn how_a_leak_is_reached_is_known_if_every_process_that_leaked_there_was_judged() {
        let definite = Amount {
            bytes: 3,
            blocks: 1,
        };
        let judged = SiteShare {
            reached: Some(Reached {
                definite,
                ..Reached::default()
            }),
            ..share("/a", 3)
        };
        let mut gathering = Gathering::default();
        for (identity, others) in [(1, 0), (2, 9)] {
            gathering.stack(judged, &stack(identity, 1));
            gathering.stack(share("/a", others), &stack(identity, 1));
        }
        let sites = finish(gathering).sites;
        let lost = sites.iter().map(|site| site.reached.map(|it| it.lost()));
        assert_eq!(lost.collect::<Vec<_>>(), [None, Some(definite)]);
    }

    #[test]
    fn an_image_that_an_exec_replaced_and_one_that_runs_have_leaked_nothing() {
        let mut gathering = Gathering::default();
        for end in [End::Exec, End::Running] {
            gathering.stack(
                SiteShare {
                    end,
                    ..share("/a", 9)
                },
                &stack(1, 1),
            );
        }
        let sites = finish(gathering).sites;
        assert_eq!(sites[0].leaked, Amount::default());
        assert_eq!(sites[0].allocated.bytes, 200);
    }

    #[test]
    fn what_leaked_most_is_kept_and_memory_is_bounded() {
        let mut gathering = Gathering::within(3, 10);
        for number in 0..100 {
            let mut image = image();
            image.pid = number;
            image.counters.leaked_bytes = u64::from(number % 10);
            gathering.image(&image);
            let leaked = u64::from(number % 50);
            gathering.stack(share("/a", leaked), &stack(u64::from(number), 2));
            assert!(gathering.images.len() <= 6);
            assert!(gathering.frames <= 20);
        }
        let finished = finish(gathering);
        let pids = finished.images.iter().map(|image| image.pid);
        assert_eq!(pids.collect::<Vec<_>>(), [9, 19, 29]);
        assert_eq!(finished.more_images, 97);
        assert!(finished.has_more_sites);
        let leaked = finished.sites.iter().map(|site| site.leaked.bytes);
        assert_eq!(leaked.collect::<Vec<_>>(), [49, 49, 48, 48, 47]);
    }
}
