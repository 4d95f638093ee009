# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_memleak_global_optspecs
    string join \n p/pid= a/all no-children live top= max-allocs= allocator= o/output= q/quiet v/verbose color= format= uid= user-name= comm= cgroup= min-leak= h/help V/version
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

complete -c memleak -n "__fish_memleak_needs_command" -s p -l pid -d 'Watch this process, from now on, and all that it starts; several: -p 1,2 or -p 1 -p 2' -r
complete -c memleak -n "__fish_memleak_needs_command" -l top -d 'How many of these, those that grew most' -r
complete -c memleak -n "__fish_memleak_needs_command" -l max-allocs -d 'Live blocks that can be told apart at one time; beyond that, leaks are known within bounds' -r
complete -c memleak -n "__fish_memleak_needs_command" -l allocator -d 'Count a program\'s own allocator: PATH:alloc=FUNCTION,free=FUNCTION, as \'./app:alloc=pool_alloc(_, size),free=pool_free(_, block)\', or a .toml file with such; may be repeated' -r
complete -c memleak -n "__fish_memleak_needs_command" -s o -l output -d 'Write to FILE instead of standard error (run) or standard output (-p, -a, doctor); %p: memleak\'s pid, %h: the host, %q{VAR}: a variable' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l color -d 'When to use colour; auto: where the output goes to a terminal and `NO_COLOR` is not set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_needs_command" -l format -d 'What the report looks like' -r -f -a "table\t'Columns for people'
json\t'One JSON object a line'
csv\t'Comma-separated values with one header'"
complete -c memleak -n "__fish_memleak_needs_command" -l uid -d 'Only processes of this real user id; several: --uid 1,2 or --uid 1 --uid 2' -r
complete -c memleak -n "__fish_memleak_needs_command" -l user-name -d 'Only processes of this user; may be repeated' -r -f -a "(__fish_complete_users)"
complete -c memleak -n "__fish_memleak_needs_command" -l comm -d 'Only processes whose command name matches (!GLOB: does not match); may be repeated' -r
complete -c memleak -n "__fish_memleak_needs_command" -l cgroup -d 'Only processes in this control group (version 2) and those below it; may be repeated' -r -f -a "(__fish_complete_directories)"
complete -c memleak -n "__fish_memleak_needs_command" -l min-leak -d 'Report only processes that have not freed SIZE or more' -r
complete -c memleak -n "__fish_memleak_needs_command" -s a -l all -d 'Watch every process of the machine but memleak, those that start later too'
complete -c memleak -n "__fish_memleak_needs_command" -l no-children -d 'Watch the processes of -p alone, not what they start'
complete -c memleak -n "__fish_memleak_needs_command" -l live -d 'Each interval, report the processes that still run too: what they hold, and how much more than before'
complete -c memleak -n "__fish_memleak_needs_command" -s q -l quiet -d 'Print errors, a failed or unknown gate, and what the doctor finds not ok; nothing else'
complete -c memleak -n "__fish_memleak_needs_command" -s v -l verbose -d 'Tell about probes too, about images that an exec replaced, and what the kernel said to programs that it refused'
complete -c memleak -n "__fish_memleak_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c memleak -n "__fish_memleak_needs_command" -s V -l version -d 'Print version'
complete -c memleak -n "__fish_memleak_needs_command" -a "run" -d 'Launch a command and follow it and all its children to their ends'
complete -c memleak -n "__fish_memleak_needs_command" -a "doctor" -d 'Try whether memleak run works here, and say what is in its way and what to do about it'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l wait-all -d 'Wait until no process of the tree is left, at most SECONDS; INT, TERM, HUP or QUIT ends it' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l user -d 'Run the command as this user, with the user\'s groups and no capabilities; sudo: as whoever called sudo' -r -f -a "(__fish_complete_users)"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l max-allocs -d 'Live blocks that can be told apart at one time; beyond that, leaks are known within bounds' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l allocator -d 'Count a program\'s own allocator: PATH:alloc=FUNCTION,free=FUNCTION, as \'./app:alloc=pool_alloc(_, size),free=pool_free(_, block)\', or a .toml file with such; may be repeated' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -s o -l output -d 'Write to FILE instead of standard error (run) or standard output (-p, -a, doctor); %p: memleak\'s pid, %h: the host, %q{VAR}: a variable' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand run" -l color -d 'When to use colour; auto: where the output goes to a terminal and `NO_COLOR` is not set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l format -d 'What the report looks like' -r -f -a "table\t'Columns for people'
json\t'One JSON object a line'
csv\t'Comma-separated values with one header'"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-leak -d 'Fail if any one process leaks more than SIZE; 0: any leak' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-total-leak -d 'Fail if all processes together leak more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l gate-comm -d 'Judge only processes whose command name matches (!GLOB: does not match); may be repeated' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l leak-exitcode -d 'Exit code of a failed gate, 1 to 255 [default: 23]' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -s q -l quiet -d 'Print errors, a failed or unknown gate, and what the doctor finds not ok; nothing else'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s v -l verbose -d 'Tell about probes too, about images that an exec replaced, and what the kernel said to programs that it refused'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l leak-exitcode-wins -d 'Let that code come before a non-zero code of the command\'s'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l allow-drain -d 'Let the gate fail a Slurm prolog or epilog too, which takes the node out of service'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s V -l version -d 'Print version'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s o -l output -d 'Write to FILE instead of standard error (run) or standard output (-p, -a, doctor); %p: memleak\'s pid, %h: the host, %q{VAR}: a variable' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -l color -d 'When to use colour; auto: where the output goes to a terminal and `NO_COLOR` is not set' -r -f -a "auto\t''
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -l format -d 'What it looks like' -r -f -a "table\t'A line for each check'
json\t'One JSON object a line'"
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s q -l quiet -d 'Print errors, a failed or unknown gate, and what the doctor finds not ok; nothing else'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s v -l verbose -d 'Tell about probes too, about images that an exec replaced, and what the kernel said to programs that it refused'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s V -l version -d 'Print version'
