//! What this kernel can do, read from its type information.

use std::fs;

use libbpf_rs::btf::types::{FuncProto, Ptr, Typedef};
use libbpf_rs::btf::{Btf, ReferencesType as _};

use crate::kernel::method::{Holds, Method};
use crate::os::release;

/// The best that this kernel can do. The names in its type information decide, not its version, because distributions
/// backport features into older versions.
pub(super) struct Best {
    pub(super) method: Method,
    pub(super) holds: Holds,
}

impl Best {
    pub(super) fn of_this_kernel() -> Self {
        Self::by_names(&fs::read(BTF).unwrap_or_default())
    }

    fn by_names(btf: &[u8]) -> Self {
        let has = |name: &[u8]| memchr::memmem::find(btf, name).is_some();
        // The functions that sessions need do not decide: 6.10 has those, for kprobes only. Trying does not decide
        // either: 6.1 loads a program for multi uprobes, and refuses only to attach it.
        // `bpf_mem_alloc` is the memory that a probe may use. With it, elements of a hash table come from there.
        let method = if !has(b"\0bpf_mem_alloc\0") {
            Method::Separate
        } else if has(b"\0BPF_TRACE_UPROBE_SESSION\0") {
            Method::Session
        } else if has(b"\0BPF_TRACE_UPROBE_MULTI\0") {
            Method::Multi
        } else {
            Method::PerfEvent
        };
        let holds = if !has(b"\0bpf_iter_task_vma_new\0") {
            Holds::Nowhere
        } else if !has(b"\0bpf_task_work_schedule_resume\0")
            && !has(b"\0bpf_task_work_schedule_resume_impl\0")
        {
            Holds::Loader
        } else {
            Holds::Everywhere
        };
        Best { method, holds }
    }
}

/// The file in which the kernel shows its own type information.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Whether this kernel lacks what the programs for newer kernels need. The version only decides whether the type
/// information is searched: distributions backport features, and the type information has megabytes.
pub(super) fn is_older() -> bool {
    const NEWER: (u32, u32) = (6, 1);
    release::version(&release::release()).is_none_or(|version| version < NEWER)
        && Best::of_this_kernel().method == Method::Separate
}

/// Whether this kernel can put uprobes into single processes. The type information does not tell: multi uprobes were for
/// a single thread before 6.10, and missed the threads whose leader had exited before 6.12. There they tell processes
/// apart that share their memory, too (`uprobe_prog_run` in kernel/trace/bpf_trace.c).
pub(super) fn can_filter(method: Method) -> bool {
    const FILTERS: (u32, u32) = (6, 12);
    method <= Method::Multi
        && release::version(&release::release()).is_some_and(|version| version >= FILTERS)
}

/// Whether the kernel tells of a task's exit while the task has its memory still (6.16), and of an exec before it (6.10).
/// With the former, the tracepoint of exits has got a second argument.
pub fn tells_before_memory_goes() -> bool {
    let Ok(btf) = Btf::from_vmlinux() else {
        return false;
    };
    let arguments = |tracepoint: &str| {
        let pointer: Typedef<'_> = btf.type_by_name(&format!("btf_trace_{tracepoint}"))?;
        let pointer = Ptr::try_from(pointer.referenced_type()).ok()?;
        let function = FuncProto::try_from(pointer.referenced_type()).ok()?;
        // The first one is the program's own.
        Some(function.iter().count() - 1)
    };
    arguments("sched_process_exit").is_some_and(|count| count > 1)
        && arguments("sched_prepare_exec").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_in_the_type_information_count() {
        let best = |names: &[&str]| {
            let best = Best::by_names(format!("\0{}\0", names.join("\0")).as_bytes());
            (best.method, best.holds)
        };
        let (multi, session) = ("BPF_TRACE_UPROBE_MULTI", "BPF_TRACE_UPROBE_SESSION");
        let (mappings, work) = (
            "bpf_iter_task_vma_new",
            "bpf_task_work_schedule_resume_impl",
        );
        let newer = "bpf_mem_alloc";
        assert_eq!(best(&[]), (Method::Separate, Holds::Nowhere));
        assert_eq!(best(&["bpf_mem_alloc_init"]).0, Method::Separate);
        assert_eq!(best(&[newer]), (Method::PerfEvent, Holds::Nowhere));
        let likenesses = ["bpf_iter_task_vma_new_impl", "NO_BPF_TRACE_UPROBE_MULTI"];
        assert_eq!(
            best(&[&[newer][..], &likenesses].concat()),
            (Method::PerfEvent, Holds::Nowhere)
        );
        assert_eq!(best(&[newer, multi]), (Method::Multi, Holds::Nowhere));
        assert_eq!(
            best(&[newer, multi, mappings]),
            (Method::Multi, Holds::Loader)
        );
        assert_eq!(
            best(&[newer, multi, session, mappings, work]),
            (Method::Session, Holds::Everywhere)
        );
    }
}
