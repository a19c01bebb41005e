"""Some seven hundred common English words, of our own choosing, for lists of words."""

from __future__ import annotations

ADJECTIVES = tuple(
    """
    able angry bitter blue bold brave brief bright broad brown busy calm cheap clean clear clever cold cool
    crisp curly dark deep dense dirty double dry dull dusty early easy empty equal exact faint fair famous fancy
    fast firm flat fresh full gentle giant glad golden grand gray great green grim happy hard heavy hollow
    honest huge humble icy jolly keen kind large late lazy lean light little lively local lonely loose loud
    lovely loyal lucky mad major mild minor modern narrow neat new nice noble noisy odd old open orange pale
    perfect plain polite poor pretty pure purple quick quiet rapid rare raw ready red rich ripe rough round
    royal sad safe salty sharp shiny short shy silent silver simple slim slow small smart smooth soft solid sour
    spare steady steep stiff strange strict strong sudden sweet swift tall tame tender thick thin tight tiny
    tired tough urgent vague vast warm weak weary wet white wide wild wise wooden yellow young
    """.split()
)

NOUNS = tuple(
    """
    acorn actor alarm anchor angle animal answer arch arm armor arrow artist aunt autumn axe badge balloon
    banana band bank barn barrel basin battle beach bean bear beard bee bell belt bench bicycle bird blade board
    boat bone bonnet border bowl box branch bread brick bridge broom brother brush bubble bucket button cabin
    cactus cake candle canoe canyon cap captain card carpet carrot cart castle cat cave cellar chain chair chalk
    cheese cherry chest chicken chimney circle circus city clay cliff clock cloth cloud coach coal coast coat
    coin collar color comb copper coral corner cotton cousin crane crayon cream creek crown cup curtain cushion
    dance dawn deer desert desk dinner doctor dog doll dolphin donkey door dragon drawer dream dress drum duck
    dust eagle ear earth edge egg elbow engine evening eye fabric face falcon family farm feather fence ferry
    field finger fire fish flag flame flock floor flower flute fog forest fork fountain fox frame friend frog
    fruit garlic gate ghost glass glove goat gold goose grain grape grass gravel guest habit hall hand handle
    hat hawk head heart hedge helmet hen hero hill hive honey hook horn horse hotel house ice ink insect iron
    island ivory jacket jar jewel journey judge juice jungle kettle key king kite kitten knee knife knot lace
    ladder lady lake lantern leaf leather lemon letter lid lily line lion lizard loaf lock log magnet maple
    marble mask mast meadow meal melon metal mill mirror mitten monkey moon moss motor mountain mouse mouth mud
    muffin music nail napkin neck needle nest net night noodle nose nut oak oar ocean olive onion orchard oven
    owl ox oyster paddle page paint palace palm pan paper parade parrot path peach peanut pear pearl pebble pen
    pencil pepper piano picture pie pig pigeon pillow pilot pine pipe pirate plank plant plate plum pocket pond
    pony potato powder prince pumpkin puppet puzzle queen quilt rabbit radio raft rain ranch razor ribbon rice
    ring river road robin rock roof room rope rose ruler saddle sail salad salt sand scarf seed shadow shark
    sheep shell shelf ship shirt shoe shore shovel sister skirt sky sled sleeve slipper smoke snail snake snow
    soap sock soil song soup spice spider spoon spring square squirrel stable stair stamp star statue stem stone
    stool storm story stove straw stream street string sugar sun swan table tail tailor tea temple tent thread
    throat throne thumb thunder ticket tiger toast tomato tooth torch towel tower town toy train tray tree
    trumpet trunk tunnel turkey turtle twig uncle valley vase velvet village vine violin voice wagon wall wave
    wax well whale wheat wheel whistle wind window wing winter wire wolf wood wool worm wrist yard zebra
    """.split()
)
