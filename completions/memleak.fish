# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_memleak_global_optspecs
    string join \n h/help V/version
end

function __fish_memleak_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_memleak_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_memleak_using_subcommand
    set -l cmd (__fish_memleak_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c memleak -n "__fish_memleak_needs_command" -s h -l help -d 'Print help'
complete -c memleak -n "__fish_memleak_needs_command" -s V -l version -d 'Print version'
complete -c memleak -n "__fish_memleak_needs_command" -f -a "run" -d 'Launch a command and follow it and all its children to their ends'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l max-allocs -d 'Live blocks that can be told apart at one time; beyond that, leaks are known within bounds' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l wait-all -d 'Wait until no process of the tree is left, at most SECONDS; INT, TERM, HUP or QUIT ends it' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l without-probe -d 'Leave a row out of the probe table, to see that its absence is noticed' -r -f -a "malloc\t''
calloc\t''
realloc\t''
reallocarray\t''
posix_memalign\t''
memalign\t''
valloc\t''
pvalloc\t''
free\t''
start\t''"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l holds -d 'Where processes are held until their files have been examined, at the most' -r -f -a "nowhere\t'Nowhere: only what is found before the command starts is probed in time'
loader\t'Where the dynamic loader tells what it has mapped. A static program goes on unheld'
everywhere\t'There, and after every exec'"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l hold-delay -d 'Leave those who are held waiting for so many milliseconds more' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l method -d 'How to attach the probes, instead of the best way that works' -r -f -a "session\t'One program at entry and return, one link for all functions (6.13)'
multi\t'One link for all entries, one for all returns (6.6)'
perf-event\t'A perf event for each function, entry and return'"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l user -d 'Run the command as this user, with the user\'s groups and no capabilities; sudo: as whoever called sudo' -r -f -a "(__fish_complete_users)"
complete -c memleak -n "__fish_memleak_using_subcommand run" -s o -l output -d 'Write the report to FILE instead of standard error; %p: memleak\'s pid, %h: the host, %q{VAR}: a variable' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand run" -l format -d 'What the report looks like' -r -f -a "table\t'Columns for people'
json\t'One JSON object a line'
csv\t'Comma-separated values with one header'"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l color -d 'When to use colour; auto: where the report goes to a terminal and `NO_COLOR` is not set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-leak -d 'Fail if any one process leaks more than SIZE; 0: any leak' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-total-leak -d 'Fail if all processes together leak more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l gate-comm -d 'Judge only processes whose command name matches (!GLOB: does not match); may be repeated' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l leak-exitcode -d 'Exit code of a failed gate, 1 to 255 [default: 23]' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l floor -d 'Attach programs that do nothing, to measure what any probes at these places cost'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l late-threads -d 'Keep all threads that are started in the table for those that come at a bad time'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s q -l quiet -d 'Report errors and a failed or unknown gate, nothing else'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s v -l verbose -d 'Tell about probes too, and about images that an exec replaced'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l leak-exitcode-wins -d 'Let that code come before a non-zero code of the command\'s'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l allow-drain -d 'Let the gate fail a Slurm prolog or epilog too, which takes the node out of service'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s V -l version -d 'Print version'
