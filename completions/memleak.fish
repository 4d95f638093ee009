# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_memleak_global_optspecs
    string join \n p/pid= a/all no-children live top= max-allocs= allocator= lost= lost-timeout= stacks= uid= user-name= comm= cgroup= min-leak= q/quiet v/verbose color= args o/output= format= metrics-labels= rotate= listen= h/help V/version
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

complete -c memleak -n "__fish_memleak_needs_command" -s p -l pid -d 'Watch this process and its children, those that run already and those to come, and all that they start; several: -p 1,2 or -p 1 -p 2' -r
complete -c memleak -n "__fish_memleak_needs_command" -l top -d 'How many running processes to report: those that grew most' -r
complete -c memleak -n "__fish_memleak_needs_command" -l max-allocs -d 'Live blocks to track' -r
complete -c memleak -n "__fish_memleak_needs_command" -l allocator -d 'Count a program\'s own allocator' -r
complete -c memleak -n "__fish_memleak_needs_command" -l lost -d 'Tell lost from reachable' -r -f -a "auto\t'In `run`, where the kernel lets memleak hold processes unseen; elsewhere as `Never`'
always\t'For each process with blocks that it never freed'
never\t'Only where a gate asks for it'"
complete -c memleak -n "__fish_memleak_needs_command" -l lost-timeout -d 'Hold a process for that long at the most' -r
complete -c memleak -n "__fish_memleak_needs_command" -l stacks -d 'Tell which calls allocated what leaked' -r -f -a "auto\t'Nowhere yet'
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_needs_command" -l uid -d 'Only processes with this real user id; several: --uid 1,2 or --uid 1 --uid 2' -r
complete -c memleak -n "__fish_memleak_needs_command" -l user-name -d 'Only processes of this user; may be repeated' -r -f -a "(__fish_complete_users)"
complete -c memleak -n "__fish_memleak_needs_command" -l comm -d 'Only processes whose command name matches (!GLOB: does not match); may be repeated' -r
complete -c memleak -n "__fish_memleak_needs_command" -l cgroup -d 'Only processes in this control group (version 2) and those below it; may be repeated' -r -f -a "(__fish_complete_directories)"
complete -c memleak -n "__fish_memleak_needs_command" -l min-leak -d 'Report only processes that hold or leak at least SIZE' -r
complete -c memleak -n "__fish_memleak_needs_command" -l color -d 'When to use colour' -r -f -a "auto\t''
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_needs_command" -s o -l output -d 'Write the report to FILE' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l format -d 'Format where no suffix tells it' -r -f -a "table\t'Columns for people'
json\t'One JSON object a line'
csv\t'Comma-separated values with one header'
prometheus\t'Sums for Prometheus, in its text format'
influx\t'Points for InfluxDB, in its line protocol'"
complete -c memleak -n "__fish_memleak_needs_command" -l metrics-labels -d 'Labels of metrics' -r -f -a "comm\t''
user\t''
cgroup\t''
jobid\t''"
complete -c memleak -n "__fish_memleak_needs_command" -l rotate -d 'Put a report file aside at SIZE' -r
complete -c memleak -n "__fish_memleak_needs_command" -l listen -d 'Serve metrics at this address' -r
complete -c memleak -n "__fish_memleak_needs_command" -s a -l all -d 'Watch every process of the machine except memleak, including those that start later'
complete -c memleak -n "__fish_memleak_needs_command" -l no-children -d 'Watch only the processes of -p, not those that they have started or will start'
complete -c memleak -n "__fish_memleak_needs_command" -l live -d 'Each interval, also report the running processes: the memory that they hold, and its growth'
complete -c memleak -n "__fish_memleak_needs_command" -s q -l quiet -d 'Print only errors and bad news'
complete -c memleak -n "__fish_memleak_needs_command" -s v -l verbose -d 'Print more'
complete -c memleak -n "__fish_memleak_needs_command" -l args -d 'Show command lines'
complete -c memleak -n "__fish_memleak_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c memleak -n "__fish_memleak_needs_command" -s V -l version -d 'Print version'
complete -c memleak -n "__fish_memleak_needs_command" -a "run" -d 'Launch a command and follow it and all its children until they exit'
complete -c memleak -n "__fish_memleak_needs_command" -a "doctor" -d 'Test whether memleak run works here, and say what prevents it and how to fix that'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l wait-all -d 'Wait for all processes of the tree' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l user -d 'Run the command as this user' -r -f -a "(__fish_complete_users)"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l probes -d 'Probed files: shared, private' -r -f -a "shared\t'The system\'s files'
private\t'Copies that only the command sees'"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l max-allocs -d 'Live blocks to track' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l allocator -d 'Count a program\'s own allocator' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l lost -d 'Tell lost from reachable' -r -f -a "auto\t'In `run`, where the kernel lets memleak hold processes unseen; elsewhere as `Never`'
always\t'For each process with blocks that it never freed'
never\t'Only where a gate asks for it'"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l lost-timeout -d 'Hold a process for that long at the most' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l stacks -d 'Tell which calls allocated what leaked' -r -f -a "auto\t'Nowhere yet'
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-leak -d 'Fail if a process leaks more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-total-leak -d 'Fail if all together leak more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-lost -d 'Fail if a process loses more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-total-lost -d 'Fail if all together lose more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l gate-comm -d 'Judge only processes of these names' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l gate-exe -d 'Judge only processes of these paths' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l leak-exitcode -d 'Exit code of a failed gate [default: 23]' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l color -d 'When to use colour' -r -f -a "auto\t''
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l sort -d 'Order of the block by command' -r -f -a "leak\t''
lost\t''
allocs\t''
processes\t''"
complete -c memleak -n "__fish_memleak_using_subcommand run" -s o -l output -d 'Write the report to FILE' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand run" -l format -d 'Format where no suffix tells it' -r -f -a "table\t'Columns for people'
json\t'One JSON object a line'
csv\t'Comma-separated values with one header'
prometheus\t'Sums for Prometheus, in its text format'
influx\t'Points for InfluxDB, in its line protocol'"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l metrics-labels -d 'Labels of metrics' -r -f -a "comm\t''
user\t''
cgroup\t''
jobid\t''"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l leak-exitcode-wins -d 'Let it replace the command\'s own code'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l allow-drain -d 'Let the gate fail a Slurm prolog or epilog'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s q -l quiet -d 'Print only errors and bad news'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s v -l verbose -d 'Print more'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l args -d 'Show command lines'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s V -l version -d 'Print version'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s o -l output -d 'Write to FILE instead of standard output; %p in FILE is memleak\'s pid, %h the host name, %q{VAR} an environment variable' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -l color -d 'When to use colour' -r -f -a "auto\t''
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -l format -d 'Format of the findings' -r -f -a "table\t'A line for each check'
json\t'One JSON object a line'"
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s q -l quiet -d 'Print only errors and bad news'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s v -l verbose -d 'Print more'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s V -l version -d 'Print version'
